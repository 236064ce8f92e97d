#include "session/access_queue.hpp"

#include <gtest/gtest.h>

#include "support.hpp"

namespace bobbin::test {
namespace {

using link::Access;
using link::AccessKind;

Access accessOf(std::uint32_t ino) { return {.timeNs = ino, .ino = ino, .kind = AccessKind::open, .bytes = 1}; }

std::vector<std::uint32_t> inosOf(const AccessQueue::Batch& batch) {
  std::vector<std::uint32_t> inos;
  for (const auto& record : batch.records) inos.push_back(record.ino);
  return inos;
}

using Inos = std::vector<std::uint32_t>;

TEST(AccessQueue, GivesEachAccessOnceAndKeepsItUntilItIsInTheLog) {
  AccessQueue queue;
  for (std::uint32_t ino = 1; ino <= 3; ino++) queue.add(accessOf(ino));
  auto batch = queue.take();
  EXPECT_EQ(batch.first, 0U);
  EXPECT_EQ(inosOf(batch), (Inos{1, 2, 3}));
  EXPECT_TRUE(queue.take().records.empty());
  queue.add(accessOf(4));
  batch = queue.take();
  EXPECT_EQ(batch.first, 3U);
  EXPECT_EQ(inosOf(batch), (Inos{4}));

  queue.logged(2);
  queue.add(accessOf(5));
  queue.sendAgain();
  batch = queue.take();
  EXPECT_EQ(batch.first, 2U) << "another daemon gets what is in no log";
  EXPECT_EQ(inosOf(batch), (Inos{3, 4, 5}));
  queue.logged(5);
  queue.sendAgain();
  EXPECT_TRUE(queue.take().records.empty());
  queue.add(accessOf(6));
  EXPECT_EQ(queue.take().first, 5U);
}

TEST(AccessQueue, IsNotConfusedByALogThatHasMoreOrLessThanWasSent) {
  AccessQueue queue;
  queue.add(accessOf(1));
  queue.logged(7);
  EXPECT_EQ(inosOf(queue.take()), (Inos{1})) << "what was not sent cannot be there";
  queue.logged(0);
  queue.sendAgain();
  EXPECT_EQ(inosOf(queue.take()), (Inos{1}));
}

TEST(AccessQueue, CountsWhatItHasNoRoomFor) {
  AccessQueue queue;
  constexpr std::uint32_t LOST = 5;
  for (std::uint32_t ino = 1; ino <= AccessQueue::RECORDS_MAX + LOST; ino++) queue.add(accessOf(ino));
  const auto batch = queue.take();
  ASSERT_EQ(batch.records.size(), AccessQueue::RECORDS_MAX + 1);
  EXPECT_EQ(batch.records.back().kind, AccessKind::lost);
  EXPECT_EQ(batch.records.back().bytes, LOST);
  // On its way already, so that another one has to be made.
  queue.add(accessOf(1));
  auto more = queue.take();
  ASSERT_EQ(more.records.size(), 1U);
  EXPECT_EQ(more.first, AccessQueue::RECORDS_MAX + LOST);
  EXPECT_EQ(more.records[0].bytes, 1U);
  queue.logged(AccessQueue::RECORDS_MAX + LOST - 1);
  queue.sendAgain();
  more = queue.take();
  EXPECT_EQ(more.first, AccessQueue::RECORDS_MAX) << "a record is in the log as a whole, or not";
  queue.logged(AccessQueue::RECORDS_MAX + LOST + 1);
  queue.add(accessOf(9));
  more = queue.take();
  EXPECT_EQ(more.first, AccessQueue::RECORDS_MAX + LOST + 1);
  EXPECT_EQ(inosOf(more), (Inos{9}));
}

TEST(AccessQueue, GoesOnWithTheLogOfAnEarlierProcess) {
  AccessQueue queue;
  queue.continueLog();
  queue.add(accessOf(1));
  EXPECT_TRUE(queue.take().records.empty()) << "only the log knows their numbers";
  queue.sendAgain();
  EXPECT_TRUE(queue.take().records.empty());
  queue.logged(1000);
  const auto batch = queue.take();
  EXPECT_EQ(batch.first, 1000U);
  ASSERT_EQ(batch.records.size(), 2U);
  EXPECT_EQ(batch.records[0].kind, AccessKind::lost);
  EXPECT_EQ(batch.records[1].ino, 1U);
  queue.logged(1002);
  queue.sendAgain();
  EXPECT_TRUE(queue.take().records.empty());
}

TEST(AccessQueue, IsLeftToTheNextProcess) {
  AccessQueue queue;
  for (std::uint32_t ino = 1; ino <= 4; ino++) queue.add(accessOf(ino));
  queue.take();
  queue.logged(1);
  queue.add(accessOf(5));
  const auto saved = queue.save();
  AccessQueue next;
  ASSERT_TRUE(next.restore(saved));
  EXPECT_EQ(inosOf(next.take()), (Inos{5}));
  next.sendAgain();
  EXPECT_EQ(inosOf(next.take()), (Inos{2, 3, 4, 5}));
  for (std::size_t length = 0; length < saved.size(); length++)
    EXPECT_FALSE(AccessQueue().restore({saved.data(), length})) << length;
}

}  // namespace
}  // namespace bobbin::test
