#include "session/open_table.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <map>

#include "support.hpp"

namespace bobbin::test {
namespace {

using link::ObjectName;

ObjectName nameOf(std::uint32_t number, std::uint32_t homes = ~0U) {
  ObjectName name{.type = static_cast<std::uint8_t>(number % 2), .bytes = {}};
  // The table goes by the first bytes; the last of its slots among them.
  const std::uint64_t home = homes == ~0U ? number : 65'534 + number % homes;
  std::memcpy(name.bytes.data(), &home, sizeof home);
  std::memcpy(name.bytes.data() + 8, &number, sizeof number);
  return name;
}

std::unique_ptr<OpenTable> create() {
  int error = 0;
  auto table = OpenTable::create(error);
  EXPECT_NE(table, nullptr) << error;
  return table;
}

bool isOpenFd(int fd) { return ::fcntl(fd, F_GETFD) >= 0; }

TEST(OpenTable, CountsOpensAndCloses) {
  const auto table = create();
  EXPECT_FALSE(table->isOpen(nameOf(1)));
  EXPECT_EQ(table->acquire(nameOf(1), 10)->opens, 1U);
  EXPECT_EQ(table->acquire(nameOf(1), 10)->opens, 2U);
  EXPECT_EQ(table->acquire(nameOf(2), 5)->opens, 1U);
  EXPECT_EQ(table->totals().objects, 2U);
  EXPECT_EQ(table->totals().bytes, 15U);
  EXPECT_FALSE(table->release(nameOf(1)));
  EXPECT_TRUE(table->release(nameOf(1)));
  EXPECT_FALSE(table->isOpen(nameOf(1)));
  EXPECT_FALSE(table->release(nameOf(1))) << "one close too many";
  EXPECT_FALSE(table->release(nameOf(3))) << "never opened";
  EXPECT_TRUE(table->isOpen(nameOf(2)));
}

TEST(OpenTable, CountsAsAMapDoesWhenNamesShareTheirSlots) {
  const auto table = create();
  std::map<std::uint32_t, std::uint32_t> expected;
  Random random(6);
  constexpr std::uint32_t NAMES = 60;
  for (int i = 0; i < 20'000; i++) {
    const std::uint32_t number = random.below(NAMES);
    if (random.below(2) == 0) {
      ASSERT_EQ(table->acquire(nameOf(number, 4), 1)->opens, ++expected[number]);
    } else {
      const bool wasLast = expected[number] == 1;
      ASSERT_EQ(table->release(nameOf(number, 4)), wasLast);
      if (expected[number] > 0) expected[number]--;
    }
    const std::uint32_t other = random.below(NAMES);
    ASSERT_EQ(table->isOpen(nameOf(other, 4)), expected[other] > 0);
  }
}

TEST(OpenTable, KeepsBackingIdsAfterTheLastCloseAndInAnUpgrade) {
  auto table = create();
  table->acquire(nameOf(1), 10);
  table->setBacking(nameOf(1), 77, 88);
  table->release(nameOf(1));
  table->acquire(nameOf(2), 10);
  table->acquire(nameOf(2), 10);
  table->setCached(nameOf(2));
  EXPECT_EQ(table->totals().backingIds, 1U);
  const int memory = ::dup(table->memory());
  table.reset();

  int error = 0;
  const auto next = OpenTable::adopt(Fd(memory), error);
  ASSERT_NE(next, nullptr) << error;
  EXPECT_EQ(next->totals().backingIds, 1U);
  EXPECT_EQ(next->totals().objects, 1U);
  const auto opened = next->acquire(nameOf(1), 10);
  EXPECT_EQ(opened->backingId, 77);
  EXPECT_EQ(opened->stampDigest, 88U);
  EXPECT_EQ(opened->opens, 1U);
  EXPECT_FALSE(opened->isCached);
  EXPECT_TRUE(next->acquire(nameOf(2), 10)->isCached);
  EXPECT_FALSE(next->release(nameOf(2)));
  EXPECT_FALSE(next->release(nameOf(2)));
  EXPECT_TRUE(next->release(nameOf(2)));
}

TEST(OpenTable, AdoptsNothingOfAnotherSize) {
  int error = 0;
  Fd memory(::memfd_create("short", MFD_CLOEXEC));
  ASSERT_EQ(::ftruncate(memory.get(), 4096), 0);
  EXPECT_EQ(OpenTable::adopt(std::move(memory), error), nullptr);
  EXPECT_EQ(error, EINVAL);
  EXPECT_EQ(OpenTable::adopt(Fd(), error), nullptr);
}

TEST(OpenTable, ForgetsThatAnObjectWasCachedWithItsLastClose) {
  const auto table = create();
  table->acquire(nameOf(1), 10);
  table->setCached(nameOf(1));
  EXPECT_TRUE(table->acquire(nameOf(1), 10)->isCached);
  table->release(nameOf(1));
  table->release(nameOf(1));
  EXPECT_FALSE(table->acquire(nameOf(1), 10)->isCached);
}

TEST(OpenTable, TakesOnlyIdleBackingIdsAndThoseUsedLatelyLast) {
  const auto table = create();
  for (std::uint32_t i = 1; i <= 4; i++) {
    table->acquire(nameOf(i), 1);
    table->setBacking(nameOf(i), static_cast<std::int32_t>(i), i);
  }
  EXPECT_FALSE(table->takeIdleBacking(4)) << "all are open";
  for (std::uint32_t i = 2; i <= 4; i++) table->release(nameOf(i));
  EXPECT_FALSE(table->takeIdleBacking(5)) << "there is room";
  // Its first round took the marks away.
  EXPECT_EQ(table->takeIdleBacking(4), 2);
  table->acquire(nameOf(3), 1);
  table->release(nameOf(3));
  EXPECT_EQ(table->takeIdleBacking(3), 4) << "the other one was used since";
  EXPECT_EQ(table->takeIdleBacking(2), 3);
  EXPECT_FALSE(table->takeIdleBacking(1)) << "the last one is open";
  EXPECT_EQ(table->totals().backingIds, 1U);
}

TEST(OpenTable, GivesNothingThatIsOpenToEviction) {
  const auto table = create();
  EXPECT_EQ(table->takeForEviction(nameOf(1)), 0);
  table->acquire(nameOf(1), 1);
  EXPECT_FALSE(table->takeForEviction(nameOf(1)));
  table->setBacking(nameOf(1), 5, 6);
  EXPECT_FALSE(table->takeForEviction(nameOf(1)));
  table->release(nameOf(1));
  EXPECT_EQ(table->takeForEviction(nameOf(1)), 5);
  EXPECT_EQ(table->takeForEviction(nameOf(1)), 0);
  EXPECT_EQ(table->acquire(nameOf(1), 1)->backingId, 0);
}

TEST(OpenTable, SaysSoWhenItIsFullAndGoesOnAfterwards) {
  const auto table = create();
  constexpr std::uint32_t SLOTS_MAX = 49'152;
  for (std::uint32_t i = 0; i < SLOTS_MAX; i++) ASSERT_TRUE(table->acquire(nameOf(i), 1)) << i;
  EXPECT_FALSE(table->acquire(nameOf(SLOTS_MAX), 1));
  EXPECT_TRUE(table->acquire(nameOf(7), 1)) << "one that is there";
  table->release(nameOf(8));
  EXPECT_TRUE(table->acquire(nameOf(SLOTS_MAX), 1));
  EXPECT_FALSE(table->acquire(nameOf(8), 1));
  EXPECT_EQ(table->totals().objects, SLOTS_MAX);
}

TEST(OpenTable, ClosesTheDescriptorsThatItKeeps) {
  auto table = create();
  const auto file = [] { return Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC)); };
  EXPECT_TRUE(table->keepDescriptor(nameOf(1), file(), 10)) << "not open, so it comes back";
  table->acquire(nameOf(1), 1);
  table->acquire(nameOf(2), 1);
  EXPECT_EQ(table->descriptor(nameOf(1)), -1);
  EXPECT_FALSE(table->keepDescriptor(nameOf(1), file(), 1));
  const int kept = table->descriptor(nameOf(1));
  EXPECT_TRUE(isOpenFd(kept));
  EXPECT_TRUE(table->keepDescriptor(nameOf(1), file(), 10)) << "there is one";
  EXPECT_TRUE(table->keepDescriptor(nameOf(2), file(), 1)) << "there are too many";
  table->release(nameOf(1));
  EXPECT_FALSE(isOpenFd(kept));
  EXPECT_FALSE(table->keepDescriptor(nameOf(2), file(), 1));
  const int other = table->descriptor(nameOf(2));
  EXPECT_TRUE(isOpenFd(other));
  table.reset();
  EXPECT_FALSE(isOpenFd(other));
}

TEST(OpenTable, TellsTheFirstReadAfterAnOpen) {
  const auto table = create();
  EXPECT_FALSE(table->isFirstRead(nameOf(1)));
  table->acquire(nameOf(1), 1);
  EXPECT_TRUE(table->isFirstRead(nameOf(1)));
  EXPECT_FALSE(table->isFirstRead(nameOf(1)));
  table->acquire(nameOf(1), 1);
  EXPECT_FALSE(table->isFirstRead(nameOf(1)));
  table->release(nameOf(1));
  table->release(nameOf(1));
  table->acquire(nameOf(1), 1);
  EXPECT_TRUE(table->isFirstRead(nameOf(1)));
}

}  // namespace
}  // namespace bobbin::test
