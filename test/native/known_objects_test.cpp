#include "session/known_objects.hpp"

#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "support.hpp"

namespace bobbin::test {
namespace {

using link::ObjectName;
using link::Stamp;

// Names whose slots are all wanted by many: the table goes by bytes 8 to 15.
ObjectName nameOf(unsigned number, unsigned homes = 4) {
  ObjectName name{.type = static_cast<std::uint8_t>(number % 3), .bytes = {}};
  const std::uint64_t high = 16ULL * number + 3;
  const std::uint64_t low = number % homes + 61;
  std::memcpy(name.bytes.data(), &high, sizeof high);
  std::memcpy(name.bytes.data() + 8, &low, sizeof low);
  return name;
}

Stamp stampOf(unsigned number) { return {.inode = number, .size = 2 * number, .mtimeNs = -3, .ctimeNs = 4}; }

TEST(KnownObjects, KnowWhatAMapKnows) {
  KnownObjects known;
  std::map<unsigned, unsigned> expected;
  Random random(5);
  constexpr unsigned NAMES = 300;
  for (int i = 0; i < 40'000; i++) {
    const unsigned number = random.below(NAMES);
    switch (random.below(4)) {
      case 0:
      case 1: {
        const unsigned stamp = random.below(5);
        known.insert(nameOf(number), digestOf(stampOf(stamp)));
        expected[number] = stamp;
        break;
      }
      case 2:
        known.erase(nameOf(number));
        expected.erase(number);
        break;
      default: {
        const auto taken = known.take(nameOf(number));
        ASSERT_EQ(taken.has_value(), expected.contains(number));
        if (taken) {
          ASSERT_EQ(taken->stampDigest, digestOf(stampOf(expected[number])));
        }
        expected.erase(number);
      }
    }
    const unsigned other = random.below(NAMES);
    ASSERT_EQ(known.contains(nameOf(other)), expected.contains(other)) << other;
    ASSERT_EQ(known.size(), expected.size());
  }
}

TEST(KnownObjects, MatchOnlyTheStampThatWasVerified) {
  KnownObjects known;
  const Stamp stamp{.inode = 1, .size = 2, .mtimeNs = 3, .ctimeNs = 4};
  known.insert(nameOf(1), digestOf(stamp));
  EXPECT_TRUE(known.matches(nameOf(1), stamp));
  EXPECT_FALSE(known.matches(nameOf(2), stamp));
  for (const Stamp& other : {Stamp{2, 2, 3, 4}, Stamp{1, 3, 3, 4}, Stamp{1, 2, 4, 4}, Stamp{1, 2, 3, 5},
                             Stamp{2, 1, 3, 4}, Stamp{1, 2, 4, 3}, Stamp{}})
    EXPECT_FALSE(known.matches(nameOf(1), other));
}

TEST(KnownObjects, SayOnceWhetherAnObjectWasUsed) {
  KnownObjects known;
  const std::uint64_t digest = digestOf(stampOf(1));
  known.insert(nameOf(1), digest);
  EXPECT_FALSE(known.take(nameOf(1))->wasUsed);
  known.insert(nameOf(1), digest);
  known.matches(nameOf(1), stampOf(2));
  known.contains(nameOf(1));
  EXPECT_FALSE(known.take(nameOf(1))->wasUsed) << "nothing was read";
  known.insert(nameOf(1), digest);
  EXPECT_TRUE(known.matches(nameOf(1), stampOf(1)));
  EXPECT_TRUE(known.matches(nameOf(1), stampOf(1))) << "the mark is no part of the stamp";
  const auto taken = known.take(nameOf(1));
  EXPECT_TRUE(taken->wasUsed);
  EXPECT_EQ(taken->stampDigest, digest);
  EXPECT_FALSE(known.take(nameOf(1)));
}

TEST(KnownObjects, TellTypesApart) {
  KnownObjects known;
  ObjectName name = nameOf(3);
  name.type = 0;
  known.insert(name, 8);
  name.type = 1;
  EXPECT_FALSE(known.contains(name));
}

TEST(KnownObjects, TakeANameOfZerosToo) {
  KnownObjects known;
  known.insert(ObjectName{}, 8);
  EXPECT_TRUE(known.contains(ObjectName{}));
  EXPECT_EQ(known.size(), 1U);
  known.erase(ObjectName{});
  EXPECT_EQ(known.size(), 0U);
}

TEST(KnownObjects, OutliveAnUpgrade) {
  KnownObjects known;
  for (unsigned i = 0; i < 1000; i++) known.insert(nameOf(i, 100), digestOf(stampOf(i)));
  EXPECT_TRUE(known.matches(nameOf(7, 100), stampOf(7)));
  const auto saved = known.save();
  KnownObjects next;
  ASSERT_TRUE(next.restore(saved));
  EXPECT_EQ(next.size(), 1000U);
  for (unsigned i = 0; i < 1000; i++) EXPECT_TRUE(next.matches(nameOf(i, 100), stampOf(i)));
  const std::span<const std::uint8_t> bytes(saved);
  EXPECT_FALSE(KnownObjects().restore(bytes.first(bytes.size() - 1)));
  EXPECT_FALSE(KnownObjects().restore(Bytes(24)));
  EXPECT_TRUE(KnownObjects().restore({}));
}

TEST(KnownObjects, MayBeUsedByThreadsAtOnce) {
  KnownObjects known;
  std::vector<std::thread> threads;
  for (unsigned thread = 0; thread < 4; thread++) {
    threads.emplace_back([&known, thread] {
      Random random(thread);
      for (int i = 0; i < 20'000; i++) {
        const unsigned number = random.below(100);
        if (random.below(8) == 0) known.insert(nameOf(number), digestOf(stampOf(number)));
        if (random.below(50) == 0) known.take(nameOf(number));
        known.matches(nameOf(number), stampOf(number));
      }
    });
  }
  for (auto& thread : threads) thread.join();
  for (unsigned i = 0; i < 100; i++) {
    if (known.contains(nameOf(i))) {
      EXPECT_TRUE(known.matches(nameOf(i), stampOf(i)));
    }
  }
}

}  // namespace
}  // namespace bobbin::test
