#include "support.hpp"

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

namespace bobbin::test {

namespace {

constexpr std::string_view KEYS[] = {"file:///r/b.bin", "s3://bucket/one.txt?versionId=1",
                                     "file:///r/two.txt"};
constexpr std::uint64_t MANIFEST_BYTES = 10'000;

void append(Bytes& bytes, std::string_view text) { bytes.insert(bytes.end(), text.begin(), text.end()); }

Bytes readFile(const std::string& path) {
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

// Tests are told as tab-separated lines; texts in hex, because they may hold anything.
std::string textOfHex(const std::string& hex) {
  std::string text;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
    text += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
  return text;
}

std::vector<std::string> fieldsOf(const std::string& line) {
  std::vector<std::string> fields(1);
  for (const char character : line) {
    if (character == '\t') {
      fields.emplace_back();
    } else {
      fields.back() += character;
    }
  }
  return fields;
}

CompiledPackage readPackage(const std::string& folder) {
  CompiledPackage package;
  package.index = readFile(folder + "/index");
  package.manifest = readFile(folder + "/manifest");
  std::ifstream nodes(folder + "/nodes.tsv");
  for (std::string line; std::getline(nodes, line);) {
    const auto fields = fieldsOf(line);
    CompiledPackage::Line& node = package.nodes.emplace_back();
    node.position = static_cast<std::uint32_t>(std::stoul(fields.at(0)));
    node.parent = static_cast<std::uint32_t>(std::stoul(fields.at(1)));
    node.kind = fields.at(2);
    node.name = textOfHex(fields.at(3));
    node.count = std::stoull(fields.at(4));
    node.hashType = fields.at(5);
    node.digestHex = fields.at(6);
    node.physicalKey = textOfHex(fields.at(7));
    node.metadata = textOfHex(fields.at(8));
  }
  std::ifstream facts(folder + "/facts.tsv");
  for (std::string line; std::getline(facts, line);) {
    const auto fields = fieldsOf(line);
    package.facts[fields.at(0)] = textOfHex(fields.at(1));
  }
  return package;
}

}  // namespace

Bytes craftIndex(std::size_t padding) {
  struct Fields {
    std::uint32_t parent;
    std::uint8_t kind;
    std::uint8_t hashType;
    std::string_view name;
    std::uint64_t metaOffset;
    std::uint32_t metaBytes;
    // Size, or first child and children.
    std::uint64_t count;
  };
  const Fields fields[] = {
      {0, 1, 0, "", 0, 0, 1 | 2ULL << 32U},    {0, 1, 0, "a", 100, 20, 3 | 2ULL << 32U},
      {0, 2, 0, "b.bin", 0, 0, 3000},          {1, 2, 2, "one.txt", 200, 7, 3},
      {1, 2, 1, "two.txt", 0, 0, 1ULL << 40U},
  };
  Bytes index(HEADER_BYTES);
  std::string names;
  std::size_t keyOffset = 0;
  std::size_t key = 0;
  for (const auto text : KEYS) append(index, text);
  index.resize(index.size() + padding);
  const std::size_t nodesAt = index.size();
  for (const Fields& field : fields) {
    const std::size_t at = index.size();
    index.resize(at + NODE_BYTES);
    put(index, at, field.parent);
    put(index, at + 4, field.kind);
    put(index, at + 5, field.hashType);
    put(index, at + 6, static_cast<std::uint8_t>(field.name.size()));
    put(index, at + 8, std::uint64_t{names.size()});
    put(index, at + 16, field.metaOffset);
    put(index, at + 24, field.metaBytes);
    put(index, at + 28, std::uint32_t{0xC0FFEE});
    put(index, at + 32, field.count);
    names += field.name;
    if (field.kind == 1) continue;
    put(index, at + 40, std::uint64_t{keyOffset});
    put(index, at + 48, static_cast<std::uint32_t>(KEYS[key].size()));
    put(index, at + 52, static_cast<std::uint32_t>(key + 2));
    for (std::size_t i = 0; i < (field.hashType == 2 ? 8U : 32U); i++)
      put(index, at + 56 + i, static_cast<std::uint8_t>(16 * key + i + 1));
    keyOffset += KEYS[key++].size();
  }
  const std::size_t namesAt = index.size();
  append(index, names);

  put(index, 32, static_cast<std::uint32_t>(std::size(fields)));
  put(index, 36, static_cast<std::uint32_t>(std::size(KEYS)));
  put(index, 40, std::uint64_t{3000 + 3 + (1ULL << 40U)});
  put(index, 48, MANIFEST_BYTES);
  for (std::size_t i = 0; i < 64; i++) put(index, 64 + i, static_cast<std::uint8_t>(i));
  const std::uint64_t sections[][2] = {{nodesAt, namesAt - nodesAt},
                                       {namesAt, names.size()},
                                       {HEADER_BYTES, nodesAt - HEADER_BYTES},
                                       {index.size(), 0}};
  for (std::size_t i = 0; i < std::size(sections); i++) {
    put(index, 128 + 16 * i, sections[i][0]);
    put(index, 136 + 16 * i, sections[i][1]);
  }
  put(index, 192, std::uint64_t{10});
  put(index, 200, std::uint32_t{30});
  return index;
}

std::size_t nodeAt(const Bytes& index, std::size_t position) {
  return static_cast<std::size_t>(get<std::uint64_t>(index, 128)) + NODE_BYTES * position;
}

Bytes unsealed(const Bytes& index) {
  const auto end = HEADER_BYTES + get<std::uint64_t>(index, 24);
  return {index.begin(), index.begin() + static_cast<std::ptrdiff_t>(end)};
}

Bytes sealed(Bytes bytes) {
  const std::size_t body = bytes.size() - HEADER_BYTES;
  const std::size_t blocks = (body + BLOCK_BYTES - 1) / BLOCK_BYTES;
  Bytes checksums(4 * blocks);
  for (std::size_t block = 0; block < blocks; block++) {
    const std::size_t start = block * BLOCK_BYTES;
    put(checksums, 4 * block,
        crc32(std::span<const std::uint8_t>(bytes).subspan(HEADER_BYTES + start,
                                                           std::min(BLOCK_BYTES, body - start))));
  }
  std::memcpy(bytes.data(), "BOBBINIX", 8);
  put(bytes, 8, std::uint32_t{1});
  put(bytes, 12, static_cast<std::uint32_t>(BLOCK_BYTES));
  put(bytes, 16, std::uint64_t{bytes.size() + checksums.size()});
  put(bytes, 24, std::uint64_t{body});
  put(bytes, 60, crc32(checksums));
  put(bytes, 4092, crc32(std::span<const std::uint8_t>(bytes).first(4092)));
  bytes.insert(bytes.end(), checksums.begin(), checksums.end());
  return bytes;
}

OwnedIndex::OwnedIndex(std::span<const std::uint8_t> file) : bytes(file.begin(), file.end()) {
  view = IndexView::open(bytes, reason);
}

std::string hexOf(std::span<const std::uint8_t> bytes) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const auto byte : bytes) {
    text += digits[byte >> 4U];
    text += digits[byte & 15U];
  }
  return text;
}

std::string describe(const Node& node) {
  std::ostringstream text;
  text << node.position << " in " << node.parent << " "
       << (node.kind == NodeKind::file ? "file" : "directory") << " \"" << node.name << "\" meta "
       << node.meta.offset << "+" << node.meta.bytes << ":" << node.meta.crc << " children "
       << node.firstChild << "+" << node.childCount << " size " << node.size << " hash "
       << static_cast<int>(node.hashType) << ":" << hexOf(node.digest) << " key " << node.physicalKey;
  return text.str();
}

const CompiledPackage* compiledPackage() {
  static const std::optional<CompiledPackage> package = []() -> std::optional<CompiledPackage> {
    const char* folder = std::getenv("BOBBIN_TEST_PACKAGE");
    if (folder == nullptr) return std::nullopt;
    return readPackage(folder);
  }();
  return package ? &*package : nullptr;
}

}  // namespace bobbin::test
