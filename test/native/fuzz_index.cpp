// Any bytes as a package index. Those that start with an even byte are sealed first, so that no checksum
// keeps the fuzzer from what lies behind.
#include "fuzz_inputs.hpp"

using namespace bobbin;
using namespace bobbin::test;

namespace {

// Reads every byte that a node points to.
unsigned touch(const Node& node) {
  unsigned sum = 0;
  for (const char c : node.name) sum += static_cast<unsigned char>(c);
  for (const char c : node.physicalKey) sum += static_cast<unsigned char>(c);
  for (const auto byte : node.digest) sum += byte;
  return sum;
}

void check(const IndexView& view, std::uint32_t position, const Node& node) {
  const IndexFacts& facts = view.facts();
  touch(node);
  expect(node.position == position, "a node is at another position");
  expect(node.meta.offset + node.meta.bytes <= facts.manifestBytes, "metadata lies outside the manifest");
  if (position == 0) {
    expect(node.kind == NodeKind::directory && node.name.empty() && node.parent == 0, "the root is none");
  } else {
    expect(node.parent < position, "a node is its own parent's parent");
    expect(!node.name.empty() && node.name.size() <= 255, "a name is too short or too long");
    expect(node.name.find('/') == node.name.npos && node.name.find('\0') == node.name.npos, "a name is none");
    Node found;
    if (view.lookup(node.parent, node.name, found) == Outcome::ok) {
      expect(found.name == node.name && found.parent == node.parent, "lookup finds something else");
    }
  }
  if (node.kind == NodeKind::file) {
    expect(node.size <= INT64_MAX && static_cast<int>(node.hashType) < 3, "a file is none");
    Node found;
    expect(view.lookup(position, "a", found) == Outcome::absent, "a file has children");
  } else {
    expect(node.firstChild > position && node.firstChild <= facts.nodes,
           "children start before their directory");
    expect(node.childCount <= facts.nodes - node.firstChild, "children lie outside");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::span<const std::uint8_t> input(data, size);
  const bool isRaw = size > 0 && data[0] % 2 == 1;
  const OwnedIndex index(isRaw ? Bytes(input.begin(), input.end()) : sealed(expandIndex(input)));
  if (index.view == nullptr) {
    expect(!index.reason.empty(), "an index is refused without a reason");
    return 0;
  }
  Node node;
  for (std::uint32_t position = 0; position < index.view->facts().nodes; position++) {
    const Outcome outcome = index.view->node(position, node);
    expect(outcome != Outcome::absent, "a position that is there is absent");
    if (outcome == Outcome::ok) check(*index.view, position, node);
  }
  expect(index.view->node(index.view->facts().nodes, node) == Outcome::absent, "there is one node too many");
  return 0;
}
