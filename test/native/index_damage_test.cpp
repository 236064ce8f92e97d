// An index as the TypeScript compiler writes it: first whole, then cut and altered.
#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "support.hpp"

namespace bobbin::test {
namespace {

constexpr unsigned SEED = 20'261'123;
constexpr int CUTS = 2000;
constexpr int ALTERATIONS = 2000;
constexpr int LOOKUPS = 60;
constexpr const char* HASH_TYPES[] = {"SHA256", "sha2-256-chunked", "CRC64NVME"};

class IndexDamage : public testing::Test {
 protected:
  void SetUp() override {
    if (compiledPackage() == nullptr) GTEST_SKIP() << "BOBBIN_TEST_PACKAGE names no compiled package";
    const OwnedIndex sound(package().index);
    ASSERT_NE(sound.view, nullptr) << sound.reason;
    for (std::uint32_t position = 0; position < sound.view->facts().nodes; position++) {
      Node node;
      ASSERT_EQ(sound.view->node(position, node), Outcome::ok) << position;
      truth_.push_back(describe(node));
    }
  }

  static const CompiledPackage& package() { return *compiledPackage(); }

  std::string textOf(const Span& span) const {
    const auto bytes = std::span<const std::uint8_t>(package().manifest).subspan(span.offset, span.bytes);
    if (span.bytes > 0) {
      EXPECT_EQ(crc32(bytes), span.crc);
    }
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

  // Every answer is the true one, or none. Returns whether all were given.
  bool answersAreTrue(const IndexView& view, std::mt19937& random) const {
    bool isWhole = true;
    Node node;
    for (std::uint32_t position = 0; position < truth_.size(); position++) {
      const Outcome outcome = view.node(position, node);
      isWhole = isWhole && outcome == Outcome::ok;
      EXPECT_NE(outcome, Outcome::absent);
      if (outcome == Outcome::ok) {
        EXPECT_EQ(describe(node), truth_[position]);
      }
    }
    for (int i = 0; i < LOOKUPS; i++) {
      const auto& line = package().nodes[1 + random() % (package().nodes.size() - 1)];
      const Outcome outcome = view.lookup(line.parent, line.name, node);
      EXPECT_NE(outcome, Outcome::absent);
      if (outcome == Outcome::ok) {
        EXPECT_EQ(describe(node), truth_[line.position]);
      }
      EXPECT_NE(view.lookup(line.parent, line.name + "?", node), Outcome::ok);
    }
    return isWhole;
  }

  std::vector<std::string> truth_;
};

TEST_F(IndexDamage, NoneIsThereAtFirst) {
  const OwnedIndex index(package().index);
  ASSERT_EQ(index.view->facts().nodes, package().nodes.size());
  for (const auto& line : package().nodes) {
    Node node;
    ASSERT_EQ(index.view->node(line.position, node), Outcome::ok);
    EXPECT_EQ(node.position, line.position);
    EXPECT_EQ(node.parent, line.parent);
    EXPECT_EQ(node.name, line.name);
    if (line.kind == "directory") {
      EXPECT_EQ(node.kind, NodeKind::directory);
      EXPECT_EQ(node.childCount, line.count);
    } else {
      EXPECT_EQ(node.kind, NodeKind::file);
      EXPECT_EQ(node.size, line.count);
      EXPECT_EQ(HASH_TYPES[static_cast<int>(node.hashType)], line.hashType);
      EXPECT_EQ(hexOf(node.digest), line.digestHex);
      EXPECT_EQ(node.physicalKey, line.physicalKey);
    }
    if (line.position > 0) {
      EXPECT_EQ(textOf(node.meta), line.metadata);
    }
    if (line.position == 0) continue;
    ASSERT_EQ(index.view->lookup(line.parent, line.name, node), Outcome::ok) << line.name;
    EXPECT_EQ(node.position, line.position);
    EXPECT_EQ(index.view->lookup(line.parent, line.name + "?", node), Outcome::absent);
  }
}

TEST_F(IndexDamage, LeavesTheFactsOfTheCompiler) {
  const OwnedIndex index(package().index);
  const IndexFacts& facts = index.view->facts();
  const auto hex = [](const std::string& raw) {
    return hexOf({reinterpret_cast<const std::uint8_t*>(raw.data()), raw.size()});
  };
  EXPECT_EQ(hex(facts.topHash), package().facts.at("topHash"));
  EXPECT_EQ(hex(facts.manifestSha256), package().facts.at("manifestSha256"));
  EXPECT_EQ(std::to_string(facts.entries), package().facts.at("entries"));
  EXPECT_EQ(std::to_string(facts.bytes), package().facts.at("bytes"));
  EXPECT_EQ(facts.manifestBytes, package().manifest.size());
  EXPECT_EQ(textOf(facts.userMeta), package().facts.at("userMeta"));
  EXPECT_EQ(textOf(facts.message), package().facts.at("message"));
}

TEST_F(IndexDamage, OfAnyByteOfTheHeaderRefusesTheFile) {
  OwnedIndex index(package().index);
  std::string reason;
  for (std::size_t at = 0; at < HEADER_BYTES; at++) {
    const std::uint8_t whole = index.bytes[at];
    for (const unsigned change : {0x01U, 0x80U, 0xffU}) {
      index.bytes[at] = static_cast<std::uint8_t>(whole ^ change);
      ASSERT_EQ(IndexView::open(index.bytes, reason), nullptr) << at;
    }
    index.bytes[at] = whole;
  }
  EXPECT_NE(IndexView::open(index.bytes, reason), nullptr);
}

TEST_F(IndexDamage, ByACutAnywhereRefusesTheFile) {
  std::mt19937 random(SEED);
  const auto whole = std::span<const std::uint8_t>(package().index);
  for (std::size_t bytes = 0; bytes <= HEADER_BYTES; bytes++)
    ASSERT_EQ(OwnedIndex(whole.first(bytes)).view, nullptr) << bytes;
  for (int i = 0; i < CUTS; i++) {
    const std::size_t bytes = random() % whole.size();
    ASSERT_EQ(OwnedIndex(whole.first(bytes)).view, nullptr) << bytes;
  }
  Bytes longer = package().index;
  longer.push_back(0);
  EXPECT_EQ(OwnedIndex(longer).view, nullptr);
}

TEST_F(IndexDamage, OfAnyOtherByteGivesTheTrueAnswerOrNone) {
  std::mt19937 random(SEED);
  OwnedIndex index(package().index);
  const std::size_t checksumsAt = HEADER_BYTES + get<std::uint64_t>(package().index, 24);
  int found = 0;
  for (int i = 0; i < ALTERATIONS && !HasFailure(); i++) {
    const std::size_t at = HEADER_BYTES + random() % (index.bytes.size() - HEADER_BYTES);
    const std::uint8_t whole = index.bytes[at];
    index.bytes[at] = static_cast<std::uint8_t>(whole ^ (1 + random() % 255));
    std::string reason;
    const auto view = IndexView::open(index.bytes, reason);
    if (at >= checksumsAt) {
      EXPECT_EQ(view, nullptr) << at;
    }
    if (view == nullptr || !answersAreTrue(*view, random)) found++;
    index.bytes[at] = whole;
  }
  // All of the body is in use but the rows that were left out, of which there are none.
  EXPECT_EQ(found, ALTERATIONS);
}

TEST_F(IndexDamage, OfManyBytesAtOnceGivesTheTrueAnswerOrNone) {
  std::mt19937 random(SEED + 1);
  for (int i = 0; i < ALTERATIONS / 10 && !HasFailure(); i++) {
    OwnedIndex index(package().index);
    const std::size_t from = HEADER_BYTES + random() % (index.bytes.size() - HEADER_BYTES);
    const std::size_t bytes = std::min<std::size_t>(1 + random() % 20'000, index.bytes.size() - from);
    for (std::size_t at = from; at < from + bytes; at++)
      index.bytes[at] = static_cast<std::uint8_t>(random());
    std::string reason;
    const auto view = IndexView::open(index.bytes, reason);
    if (view != nullptr) answersAreTrue(*view, random);
  }
}

// With the checksums made right again anything may be answered, but nothing from outside the file.
TEST_F(IndexDamage, ThatNoChecksumShowsStaysInsideTheFile) {
  std::mt19937 random(SEED + 2);
  const Bytes whole = unsealed(package().index);
  for (int i = 0; i < ALTERATIONS / 10; i++) {
    Bytes altered = whole;
    for (int n = 0; n < 40; n++) {
      const bool isHeader = random() % 8 == 0;
      const std::size_t at =
          isHeader ? 32 + random() % 208 : nodeAt(whole, random() % truth_.size()) + random() % 96;
      altered[at] = static_cast<std::uint8_t>(random());
    }
    const OwnedIndex index(sealed(altered));
    if (index.view == nullptr) continue;
    for (std::uint32_t position = 0; position < index.view->facts().nodes; position++) {
      Node node;
      if (index.view->node(position, node) != Outcome::ok) continue;
      // Reads all that it points to.
      EXPECT_NE(describe(node), "");
      if (position == 0) continue;
      EXPECT_LT(node.parent, position);
      EXPECT_EQ(node.name.find('/'), std::string_view::npos);
      EXPECT_EQ(node.name.find('\0'), std::string_view::npos);
      const std::string name(node.name);
      Node found;
      if (index.view->lookup(node.parent, name, found) == Outcome::ok) {
        EXPECT_EQ(found.name, name);
      }
    }
  }
}

TEST_F(IndexDamage, IsNotSeenByThreadsThatReadAtOnce) {
  const OwnedIndex index(package().index);
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (unsigned thread = 0; thread < 4; thread++) {
    threads.emplace_back([&, thread] {
      std::mt19937 random(thread);
      for (std::size_t i = 0; i < 2 * truth_.size(); i++) {
        const auto& line = package().nodes[random() % package().nodes.size()];
        Node node;
        if (index.view->node(line.position, node) != Outcome::ok || describe(node) != truth_[line.position])
          wrong++;
        if (line.position == 0) continue;
        if (index.view->lookup(line.parent, line.name, node) != Outcome::ok || node.position != line.position)
          wrong++;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(), 0);
}

}  // namespace
}  // namespace bobbin::test
