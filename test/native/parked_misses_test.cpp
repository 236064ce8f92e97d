#include "session/parked_misses.hpp"

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <csignal>
#include <thread>

#include "protocol/messages.hpp"
#include "support.hpp"

namespace bobbin::test {
namespace {

using std::chrono::seconds;

constexpr seconds PATIENCE{60};
constexpr std::uint32_t MOUNT = 3;

ParkedRequest requestOf(std::uint64_t unique, std::uint32_t pid = 0, std::uint32_t mount = MOUNT) {
  ParkedRequest request;
  request.mount = mount;
  request.message.resize(sizeof(fuse::RequestHeader));
  fuse::RequestHeader header{};
  header.len = sizeof header;
  header.unique = unique;
  header.pid = pid;
  std::memcpy(request.message.data(), &header, sizeof header);
  return request;
}

TEST(ParkedMisses, AskOnceForAllReadersOfAnEntry) {
  ParkedMisses misses(PATIENCE);
  const auto question = misses.park(5, requestOf(1));
  ASSERT_TRUE(question);
  EXPECT_EQ(question->mount, MOUNT);
  EXPECT_EQ(question->ino, 5U);
  EXPECT_FALSE(misses.park(5, requestOf(2)));
  EXPECT_TRUE(misses.park(6, requestOf(3))) << "another entry";
  EXPECT_TRUE(misses.park(5, requestOf(4, 0, MOUNT + 1))) << "another mount";
  EXPECT_EQ(misses.waiting(), 3U);
  const auto answered = misses.answer(question->request);
  ASSERT_TRUE(answered);
  ASSERT_EQ(answered->requests.size(), 2U);
  EXPECT_EQ(answered->requests[0].unique(), 1U);
  EXPECT_EQ(answered->requests[1].unique(), 2U);
  EXPECT_FALSE(misses.answer(question->request)) << "answered already";
  EXPECT_FALSE(misses.answer(12'345)) << "never asked";
  const auto again = misses.park(5, requestOf(5));
  ASSERT_TRUE(again);
  EXPECT_NE(again->request, question->request);
}

TEST(ParkedMisses, AnswerAnIndexOnlyAsSuch) {
  ParkedMisses misses(PATIENCE);
  const auto question = misses.park(0, requestOf(1));
  ASSERT_TRUE(question);
  EXPECT_FALSE(misses.answer(question->request)) << "`ready` is for entries";
  EXPECT_TRUE(misses.answerIndex(MOUNT + 1).empty());
  EXPECT_EQ(misses.answerIndex(MOUNT).size(), 1U);
  EXPECT_TRUE(misses.isEmpty());
}

TEST(ParkedMisses, KeepOneCopyOfARequestThatIsSentAgain) {
  ParkedMisses misses(PATIENCE);
  const auto question = misses.park(5, requestOf(1));
  misses.park(5, requestOf(1 | fuse::UNIQUE_RESENT));
  const auto answered = misses.answer(question->request);
  ASSERT_EQ(answered->requests.size(), 1U);
  EXPECT_EQ(answered->requests[0].unique(), 1 | fuse::UNIQUE_RESENT);
}

TEST(ParkedMisses, LetAnInterruptedReaderGo) {
  ParkedMisses misses(PATIENCE);
  // Pid 0: of another namespace, where any signal counts.
  const auto question = misses.park(5, requestOf(1));
  misses.park(5, requestOf(2));
  EXPECT_EQ(misses.interrupt(MOUNT, 99).outcome, ParkedMisses::Interrupt::unknown);
  EXPECT_EQ(misses.interrupt(MOUNT + 1, 1).outcome, ParkedMisses::Interrupt::unknown);
  const auto first = misses.interrupt(MOUNT, 1);
  EXPECT_EQ(first.outcome, ParkedMisses::Interrupt::gone);
  EXPECT_EQ(first.request.unique(), 1U);
  EXPECT_FALSE(first.cancelled) << "somebody else waits";
  EXPECT_EQ(misses.interrupt(MOUNT, 2).cancelled, question->request);
  EXPECT_TRUE(misses.isEmpty());
  EXPECT_FALSE(misses.answer(question->request));
}

TEST(ParkedMisses, HoldAReaderWhoseSignalDoesNotEndIt) {
  ParkedMisses misses(PATIENCE);
  const auto self = static_cast<std::uint32_t>(::getpid());
  const auto question = misses.park(5, requestOf(1, self));
  EXPECT_EQ(misses.interrupt(MOUNT, 1).outcome, ParkedMisses::Interrupt::waits);
  EXPECT_TRUE(misses.sweep(Clock::now()).killed.empty());
  EXPECT_EQ(misses.answer(question->request)->requests.size(), 1U);
}

TEST(ParkedMisses, LetAReaderGoThatWasKilledAfterwards) {
  ParkedMisses misses(PATIENCE);
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    for (;;) ::pause();
  }
  const auto question = misses.park(5, requestOf(1, static_cast<std::uint32_t>(child)));
  EXPECT_EQ(misses.interrupt(MOUNT, 1).outcome, ParkedMisses::Interrupt::waits);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  const auto swept = misses.sweep(Clock::now());
  ASSERT_EQ(swept.killed.size(), 1U);
  EXPECT_EQ(swept.killed[0].unique(), 1U);
  EXPECT_EQ(swept.cancelled, std::vector{question->request});
  EXPECT_TRUE(misses.isEmpty());
}

TEST(ParkedMisses, EndEveryWaitAtItsDeadlineUnlessThereIsProgress) {
  ParkedMisses misses(PATIENCE);
  const auto slow = misses.park(5, requestOf(1));
  const auto stuck = misses.park(6, requestOf(2));
  const auto index = misses.park(0, requestOf(3));
  const auto other = misses.park(7, requestOf(4));
  EXPECT_TRUE(misses.sweep(Clock::now() + PATIENCE / 2).expired.empty());
  EXPECT_EQ(misses.waiting(), 4U);
  const auto before = Clock::now();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  misses.progress({slow->request, 999});
  const auto swept = misses.sweep(before + PATIENCE + std::chrono::milliseconds(1));
  ASSERT_EQ(swept.expired.size(), 3U);
  // Nobody is told to stop making an index.
  EXPECT_EQ(swept.cancelled, (std::vector{stuck->request, other->request}));
  EXPECT_TRUE(misses.answerIndex(MOUNT).empty()) << index->request;
  EXPECT_EQ(misses.waiting(), 1U);
  EXPECT_EQ(misses.sweep(Clock::now() + 2 * PATIENCE).expired.size(), 1U);
  EXPECT_TRUE(misses.isEmpty());
}

TEST(ParkedMisses, DropWhatBelongsToAMountThatEnded) {
  ParkedMisses misses(PATIENCE);
  const auto question = misses.park(5, requestOf(1));
  misses.park(0, requestOf(2));
  misses.park(5, requestOf(3, 0, MOUNT + 1));
  EXPECT_EQ(misses.drop(MOUNT), std::vector{question->request});
  EXPECT_EQ(misses.waiting(), 1U);
  EXPECT_TRUE(misses.park(5, requestOf(4))) << "it is asked anew";
}

TEST(ParkedMisses, OutliveAnUpgrade) {
  ParkedMisses misses(PATIENCE);
  const auto question = misses.park(5, requestOf(1));
  misses.park(5, requestOf(2));
  misses.park(0, requestOf(3));
  misses.park(9, requestOf(6));
  const auto saved = misses.save();
  ParkedMisses next(PATIENCE);
  ASSERT_TRUE(next.restore(saved));
  EXPECT_EQ(next.questions().size(), 3U);
  EXPECT_EQ(next.save(), saved);
  const auto another = next.park(10, requestOf(4));
  for (const auto& old : misses.questions())
    EXPECT_NE(another->request, old.request) << "a number is used twice";
  EXPECT_FALSE(next.park(5, requestOf(5)));
  const auto answered = next.answer(question->request);
  ASSERT_TRUE(answered);
  EXPECT_EQ(answered->requests.size(), 3U);
  EXPECT_EQ(next.answerIndex(MOUNT).size(), 1U);
  for (std::size_t length = 0; length < saved.size(); length++) {
    const Bytes cut(saved.begin(), saved.begin() + static_cast<std::ptrdiff_t>(length));
    EXPECT_FALSE(ParkedMisses(PATIENCE).restore(cut)) << length;
  }
}

TEST(ParkedMisses, MayBeUsedByThreadsAtOnce) {
  ParkedMisses misses(PATIENCE);
  std::vector<std::thread> threads;
  std::atomic<int> taken{0};
  constexpr int REQUESTS = 2000;
  for (unsigned thread = 0; thread < 3; thread++) {
    threads.emplace_back([&, thread] {
      for (std::uint64_t i = 0; i < REQUESTS; i++)
        misses.park(static_cast<std::uint32_t>(1 + i % 7), requestOf(thread * REQUESTS + i + 1));
    });
  }
  threads.emplace_back([&] {
    for (int i = 0; i < REQUESTS; i++) {
      for (const auto& question : misses.questions()) {
        const auto answered = misses.answer(question.request);
        if (answered) taken += static_cast<int>(answered->requests.size());
      }
      misses.sweep(Clock::now());
    }
  });
  for (auto& thread : threads) thread.join();
  for (const auto& question : misses.questions())
    taken += static_cast<int>(misses.answer(question.request)->requests.size());
  EXPECT_EQ(taken.load(), 3 * REQUESTS);
}

}  // namespace
}  // namespace bobbin::test
