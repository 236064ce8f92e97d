// Damage that no checksum shows: every index here is sealed after it was made wrong.
#include <gtest/gtest.h>

#include <functional>

#include "support.hpp"

namespace bobbin::test {
namespace {

enum Position : std::size_t { ROOT = 0, A = 1, B = 2, ONE = 3, TWO = 4, NODES = 5 };

TEST(IndexView, ReadsEveryFieldOfAnIndexThatWasMadeByHand) {
  const OwnedIndex index(sealed(craftIndex()));
  ASSERT_NE(index.view, nullptr) << index.reason;
  const char* expected[] = {
      "0 in 0 directory \"\" meta 0+0:12648430 children 1+2 size 0 hash "
      "0:0000000000000000000000000000000000000000000000000000000000000000 key ",
      "1 in 0 directory \"a\" meta 100+20:12648430 children 3+2 size 0 hash "
      "0:0000000000000000000000000000000000000000000000000000000000000000 key ",
      "2 in 0 file \"b.bin\" meta 0+0:12648430 children 0+0 size 3000 hash "
      "0:0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20 key file:///r/b.bin",
      "3 in 1 file \"one.txt\" meta 200+7:12648430 children 0+0 size 3 hash "
      "2:1112131415161718000000000000000000000000000000000000000000000000 key "
      "s3://bucket/one.txt?versionId=1",
      "4 in 1 file \"two.txt\" meta 0+0:12648430 children 0+0 size 1099511627776 hash "
      "1:2122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f40 key file:///r/two.txt",
  };
  for (std::uint32_t position = 0; position < NODES; position++) {
    Node node;
    ASSERT_EQ(index.view->node(position, node), Outcome::ok);
    EXPECT_EQ(describe(node), expected[position]);
  }
}

TEST(IndexView, TellsTheFactsOfTheHeader) {
  const OwnedIndex index(sealed(craftIndex()));
  ASSERT_NE(index.view, nullptr) << index.reason;
  const IndexFacts& facts = index.view->facts();
  EXPECT_EQ(facts.nodes, 5U);
  EXPECT_EQ(facts.entries, 3U);
  EXPECT_EQ(facts.bytes, 3003U + (1ULL << 40U));
  EXPECT_EQ(facts.manifestBytes, 10'000U);
  ASSERT_EQ(facts.topHash.size(), 32U);
  ASSERT_EQ(facts.manifestSha256.size(), 32U);
  EXPECT_EQ(facts.topHash[31], 31);
  EXPECT_EQ(facts.manifestSha256[31], 63);
  EXPECT_EQ(facts.userMeta.offset, 10U);
  EXPECT_EQ(facts.userMeta.bytes, 30U);
  EXPECT_EQ(facts.message.bytes, 0U);
}

TEST(IndexView, FindsChildrenByExactlyTheirNamesAndNothingElse) {
  const OwnedIndex index(sealed(craftIndex()));
  Node node;
  EXPECT_EQ(index.view->lookup(ROOT, "a", node), Outcome::ok);
  EXPECT_EQ(node.position, A);
  EXPECT_EQ(index.view->lookup(ROOT, "b.bin", node), Outcome::ok);
  EXPECT_EQ(node.position, B);
  EXPECT_EQ(index.view->lookup(A, "one.txt", node), Outcome::ok);
  EXPECT_EQ(node.position, ONE);
  EXPECT_EQ(index.view->lookup(A, "two.txt", node), Outcome::ok);
  EXPECT_EQ(node.position, TWO);
  using namespace std::string_view_literals;
  for (const auto name : {""sv, "A"sv, "aa"sv, "a\0"sv, "a/one.txt"sv, "."sv, ".."sv, "b.bi"sv, "b.bin "sv,
                          "zzz"sv, "\0"sv, "\xff"sv})
    EXPECT_EQ(index.view->lookup(ROOT, name, node), Outcome::absent) << name;
  EXPECT_EQ(index.view->lookup(A, "b.bin", node), Outcome::absent);
  EXPECT_EQ(index.view->lookup(ROOT, std::string(256, 'a'), node), Outcome::absent);
  EXPECT_EQ(index.view->lookup(ROOT, std::string(1U << 20U, 'a'), node), Outcome::absent);
}

TEST(IndexView, SaysAbsentOfPositionsThatAreNotThereAndOfChildrenOfFiles) {
  const OwnedIndex index(sealed(craftIndex()));
  Node node;
  for (const std::uint32_t position : {5U, 6U, 0x7fffffffU, 0xfffffffeU, 0xffffffffU}) {
    EXPECT_EQ(index.view->node(position, node), Outcome::absent);
    EXPECT_EQ(index.view->lookup(position, "a", node), Outcome::absent);
  }
  EXPECT_EQ(index.view->lookup(B, "a", node), Outcome::absent);
}

TEST(IndexView, ReadsAnEmptyPackage) {
  Bytes crafted = craftIndex();
  crafted.resize(nodeAt(crafted, 1));
  put(crafted, 32, std::uint32_t{1});
  put(crafted, 36, std::uint32_t{0});
  put(crafted, 136, std::uint64_t{NODE_BYTES});
  put(crafted, 144, std::uint64_t{crafted.size()});
  put(crafted, 152, std::uint64_t{0});
  put(crafted, 176, std::uint64_t{crafted.size()});
  put(crafted, nodeAt(crafted, 0) + 32, std::uint64_t{1});
  const OwnedIndex index(sealed(crafted));
  ASSERT_NE(index.view, nullptr) << index.reason;
  Node node;
  EXPECT_EQ(index.view->node(ROOT, node), Outcome::ok);
  EXPECT_EQ(node.childCount, 0U);
  EXPECT_EQ(index.view->lookup(ROOT, "a", node), Outcome::absent);
  EXPECT_EQ(index.view->node(1, node), Outcome::absent);
}

TEST(IndexView, GivesTheSameAnswersWhereverBlocksEnd) {
  const OwnedIndex small(sealed(craftIndex()));
  for (std::size_t before = 0; before < 700; before++) {
    const OwnedIndex index(sealed(craftIndex(BLOCK_BYTES - before)));
    ASSERT_NE(index.view, nullptr) << index.reason;
    for (std::uint32_t position = 0; position < NODES; position++) {
      Node expected;
      Node node;
      ASSERT_EQ(small.view->node(position, expected), Outcome::ok);
      ASSERT_EQ(index.view->node(position, node), Outcome::ok);
      ASSERT_EQ(describe(node), describe(expected)) << before;
    }
    Node node;
    ASSERT_EQ(index.view->lookup(A, "two.txt", node), Outcome::ok);
  }
}

TEST(IndexView, FindsEachBlockDamagedByItself) {
  Bytes bytes = sealed(craftIndex(3 * BLOCK_BYTES));
  // The second block is nothing but padding.
  bytes[HEADER_BYTES + BLOCK_BYTES + 5] ^= 1U;
  const OwnedIndex padding(bytes);
  Node node;
  EXPECT_EQ(padding.view->node(TWO, node), Outcome::ok);
  // The first one holds the keys.
  bytes[HEADER_BYTES + 60'000] ^= 1U;
  const OwnedIndex keys(bytes);
  EXPECT_EQ(keys.view->node(TWO, node), Outcome::damaged);
  EXPECT_EQ(keys.view->lookup(A, "two.txt", node), Outcome::damaged);
  EXPECT_EQ(keys.view->node(A, node), Outcome::ok);
}

TEST(IndexView, TakesABlockForSoundOnceItWasChecked) {
  OwnedIndex index(sealed(craftIndex(3 * BLOCK_BYTES)));
  Node node;
  ASSERT_EQ(index.view->node(TWO, node), Outcome::ok);
  index.bytes[HEADER_BYTES + 60'000] ^= 1U;
  EXPECT_EQ(index.view->node(TWO, node), Outcome::ok);
}

TEST(IndexView, NeverTakesZerosForNodesWhenAPageIsGoneAfterItsCheck) {
  OwnedIndex index(sealed(craftIndex()));
  Node node;
  for (std::uint32_t position = 0; position < NODES; position++)
    ASSERT_EQ(index.view->node(position, node), Outcome::ok);
  const Bytes whole = index.bytes;
  const auto zero = [&index](std::size_t from, std::size_t bytes) {
    std::memset(&index.bytes[from], 0, bytes);
  };

  zero(nodeAt(whole, ONE), 2 * NODE_BYTES);
  EXPECT_EQ(index.view->node(ONE, node), Outcome::damaged);
  EXPECT_EQ(index.view->lookup(A, "one.txt", node), Outcome::damaged);
  EXPECT_EQ(index.view->lookup(A, "absent", node), Outcome::damaged);

  index.bytes = whole;
  zero(get<std::uint64_t>(whole, 144), get<std::uint64_t>(whole, 152));
  EXPECT_EQ(index.view->node(ONE, node), Outcome::damaged);
  EXPECT_EQ(index.view->lookup(A, "one.txt", node), Outcome::damaged);
  EXPECT_EQ(index.view->lookup(ROOT, "absent", node), Outcome::damaged);
}

TEST(IndexView, RefusesAnyAlteredByteOfTheChecksums) {
  const Bytes whole = sealed(craftIndex(3 * BLOCK_BYTES));
  for (std::size_t at = whole.size() - 16; at < whole.size(); at++) {
    Bytes altered = whole;
    altered[at] ^= 0x10U;
    EXPECT_EQ(OwnedIndex(altered).view, nullptr) << at;
  }
}

struct Case {
  const char* what;
  std::function<void(Bytes&)> spoil;
};

TEST(IndexView, RefusesAHeaderThatCannotBeTrue) {
  constexpr std::uint64_t NEAR_END = ~std::uint64_t{0} - 4000;
  const Case cases[] = {
      {"no nodes", [](Bytes& b) { put(b, 32, std::uint32_t{0}), put(b, 136, std::uint64_t{0}); }},
      {"more nodes than bytes", [](Bytes& b) { put(b, 32, std::uint32_t{6}); }},
      {"fewer nodes than bytes", [](Bytes& b) { put(b, 32, std::uint32_t{4}); }},
      {"as many nodes as fit in 32 bits", [](Bytes& b) { put(b, 32, 0xffffffffU); }},
      {"all entries and no root", [](Bytes& b) { put(b, 36, std::uint32_t{5}); }},
      {"nodes in the header", [](Bytes& b) { put(b, 128, std::uint64_t{4000}); }},
      {"nodes beyond the end", [](Bytes& b) { put(b, 128, std::uint64_t{b.size() - 10}); }},
      {"nodes that wrap around", [](Bytes& b) { put(b, 128, NEAR_END); }},
      {"names beyond the end", [](Bytes& b) { put(b, 152, std::uint64_t{b.size()}); }},
      {"names that wrap around", [](Bytes& b) { put(b, 152, ~std::uint64_t{0}); }},
      {"keys that wrap around", [](Bytes& b) { put(b, 160, NEAR_END), put(b, 168, std::uint64_t{9000}); }},
      {"quarantined beyond the end", [](Bytes& b) { put(b, 184, std::uint64_t{1}); }},
      {"metadata beyond the manifest", [](Bytes& b) { put(b, 192, std::uint64_t{9999}); }},
      {"metadata that wraps around", [](Bytes& b) { put(b, 192, ~std::uint64_t{0}); }},
  };
  for (const auto& [what, spoil] : cases) {
    Bytes crafted = craftIndex();
    spoil(crafted);
    const OwnedIndex index(sealed(crafted));
    EXPECT_EQ(index.view, nullptr) << what;
    EXPECT_NE(index.reason, "") << what;
  }
}

TEST(IndexView, RefusesALengthThatDoesNotAddUp) {
  const Bytes whole = sealed(craftIndex());
  const auto reseal = [](Bytes bytes) {
    put(bytes, 4092, crc32(std::span<const std::uint8_t>(bytes).first(4092)));
    return bytes;
  };
  ASSERT_NE(OwnedIndex(reseal(whole)).view, nullptr);
  for (const std::uint64_t bytes : {std::uint64_t{0}, std::uint64_t{4096}, std::uint64_t{whole.size() - 1},
                                    std::uint64_t{whole.size() + 1}, ~std::uint64_t{0}}) {
    Bytes altered = whole;
    put(altered, 16, bytes);
    EXPECT_EQ(OwnedIndex(reseal(altered)).view, nullptr) << "file of " << bytes;
    altered = whole;
    put(altered, 24, bytes);
    EXPECT_EQ(OwnedIndex(reseal(altered)).view, nullptr) << "body of " << bytes;
  }
  // A body of another length, whose table of checksums would be sound.
  for (const std::uint64_t bytes :
       {std::uint64_t{0}, std::uint64_t{100}, std::uint64_t{whole.size() - 4096}}) {
    Bytes altered = whole;
    put(altered, 24, bytes);
    put(altered, 60, crc32(std::span<const std::uint8_t>(whole).subspan(4096 + bytes)));
    EXPECT_EQ(OwnedIndex(reseal(altered)).view, nullptr) << "body of " << bytes;
  }
  Bytes altered = whole;
  put(altered, 8, std::uint32_t{2});
  EXPECT_EQ(OwnedIndex(reseal(altered)).view, nullptr);
  altered = whole;
  put(altered, 12, std::uint32_t{4096});
  EXPECT_EQ(OwnedIndex(reseal(altered)).view, nullptr);
}

TEST(IndexView, FindsEveryNodeDamagedThatCannotBeTrue) {
  const auto at = [](const Bytes& b, std::size_t position, std::size_t field) {
    return nodeAt(b, position) + field;
  };
  const auto rename = [](Bytes& b, std::size_t position, std::string_view name) {
    const auto offset = get<std::uint64_t>(b, 144) + get<std::uint64_t>(b, nodeAt(b, position) + 8);
    std::memcpy(&b[offset], name.data(), name.size());
    put(b, nodeAt(b, position) + 6, static_cast<std::uint8_t>(name.size()));
  };
  struct NodeCase {
    const char* what;
    std::uint32_t position;
    std::function<void(Bytes&)> spoil;
  };
  using namespace std::string_view_literals;
  const NodeCase cases[] = {
      {"no kind", ONE, [&](Bytes& b) { put(b, at(b, ONE, 4), std::uint8_t{0}); }},
      {"an unknown kind", ONE, [&](Bytes& b) { put(b, at(b, ONE, 4), std::uint8_t{3}); }},
      {"an unknown hash type", ONE, [&](Bytes& b) { put(b, at(b, ONE, 5), std::uint8_t{3}); }},
      {"a short hash with a tail", ONE, [&](Bytes& b) { put(b, at(b, ONE, 87), std::uint8_t{1}); }},
      {"no name", ONE, [&](Bytes& b) { put(b, at(b, ONE, 6), std::uint8_t{0}); }},
      {"a name beyond the names", TWO, [&](Bytes& b) { put(b, at(b, TWO, 6), std::uint8_t{255}); }},
      {"a name that wraps around", TWO, [&](Bytes& b) { put(b, at(b, TWO, 8), ~std::uint64_t{0}); }},
      {"a name in the header", TWO, [&](Bytes& b) { put(b, at(b, TWO, 8), std::uint64_t{0} - 5000); }},
      {"a slash in a name", ONE, [&](Bytes& b) { rename(b, ONE, "one/txt"); }},
      {"a NUL in a name", ONE, [&](Bytes& b) { rename(b, ONE, "one\0txt"sv); }},
      {"the name .", ONE, [&](Bytes& b) { rename(b, ONE, "."); }},
      {"the name ..", ONE, [&](Bytes& b) { rename(b, ONE, ".."); }},
      {"a parent that is itself", ONE, [&](Bytes& b) { put(b, at(b, ONE, 0), std::uint32_t{ONE}); }},
      {"a parent behind it", ONE, [&](Bytes& b) { put(b, at(b, ONE, 0), std::uint32_t{TWO}); }},
      {"a parent outside", ONE, [&](Bytes& b) { put(b, at(b, ONE, 0), ~std::uint32_t{0}); }},
      {"metadata beyond the manifest", ONE, [&](Bytes& b) { put(b, at(b, ONE, 16), std::uint64_t{9994}); }},
      {"metadata that wraps around", ONE, [&](Bytes& b) { put(b, at(b, ONE, 16), ~std::uint64_t{0}); }},
      {"a size that is negative", ONE, [&](Bytes& b) { put(b, at(b, ONE, 32), 1ULL << 63U); }},
      {"no key", ONE, [&](Bytes& b) { put(b, at(b, ONE, 48), std::uint32_t{0}); }},
      {"a key beyond the keys", ONE, [&](Bytes& b) { put(b, at(b, ONE, 48), ~std::uint32_t{0}); }},
      {"a key that wraps around", ONE, [&](Bytes& b) { put(b, at(b, ONE, 40), ~std::uint64_t{0} - 3); }},
      {"children beyond the end", A, [&](Bytes& b) { put(b, at(b, A, 36), std::uint32_t{3}); }},
      {"as many children as fit", A, [&](Bytes& b) { put(b, at(b, A, 36), ~std::uint32_t{0}); }},
      {"children that start outside", A, [&](Bytes& b) { put(b, at(b, A, 32), ~std::uint32_t{0}); }},
      {"children that hold it", A, [&](Bytes& b) { put(b, at(b, A, 32), std::uint32_t{A}); }},
      {"children before it", A, [&](Bytes& b) { put(b, at(b, A, 32), std::uint32_t{0}); }},
      {"a root with a name", ROOT, [&](Bytes& b) { put(b, at(b, ROOT, 6), std::uint8_t{1}); }},
      {"a root with a parent", ROOT, [&](Bytes& b) { put(b, at(b, ROOT, 0), std::uint32_t{1}); }},
      {"a root that is a file", ROOT,
       [&](Bytes& b) {
         std::memcpy(&b[at(b, ROOT, 24)], &b[at(b, B, 24)], 72);
         put(b, at(b, ROOT, 4), std::uint8_t{2});
       }},
      {"a root among its children", ROOT, [&](Bytes& b) { put(b, at(b, ROOT, 32), std::uint32_t{0}); }},
  };
  for (const auto& [what, position, spoil] : cases) {
    Bytes crafted = craftIndex();
    spoil(crafted);
    const OwnedIndex index(sealed(crafted));
    ASSERT_NE(index.view, nullptr) << what << ": " << index.reason;
    Node node;
    EXPECT_EQ(index.view->node(position, node), Outcome::damaged) << what;
    if (position == ROOT) {
      EXPECT_EQ(index.view->lookup(ROOT, "a", node), Outcome::damaged) << what;
    }
    if (position == A) {
      EXPECT_EQ(index.view->lookup(A, "one.txt", node), Outcome::damaged) << what;
    }
    if (position >= ONE) {
      const char* name = position == ONE ? "one.txt" : "two.txt";
      EXPECT_NE(index.view->lookup(A, name, node), Outcome::ok) << what;
    }
  }
}

TEST(IndexView, GivesNoChildThatBelongsToAnotherDirectory) {
  Bytes crafted = craftIndex();
  put(crafted, nodeAt(crafted, TWO), std::uint32_t{ROOT});
  const OwnedIndex index(sealed(crafted));
  Node node;
  EXPECT_EQ(index.view->lookup(A, "two.txt", node), Outcome::damaged);
  EXPECT_EQ(index.view->lookup(A, "one.txt", node), Outcome::ok);
}

}  // namespace
}  // namespace bobbin::test
