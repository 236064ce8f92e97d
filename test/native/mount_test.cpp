#include "session/mount.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "fake_mount.hpp"

namespace bobbin::test {
namespace {

using fuse::Opcode;
using link::OpenMode;
namespace filesystem = std::filesystem;

// Kinds of frames to the daemon (frames.md).
enum Frame : std::uint16_t { ENSURE = 3, CANCEL = 4, INDEX_DAMAGED = 12 };

int errorOf(const Bytes& answer) { return answer.empty() ? -1 : -get<fuse::ReplyHeader>(answer, 0).error; }

std::string bodyOf(const Bytes& answer) {
  return {answer.begin() + static_cast<std::ptrdiff_t>(sizeof(fuse::ReplyHeader)), answer.end()};
}

Bytes openOf(std::uint64_t nodeid, std::uint32_t flags = O_RDONLY, std::uint64_t unique = 1) {
  return requestOf(Opcode::open, nodeid, bytesOf(fuse::OpenIn{.flags = flags, .openFlags = 0}), unique);
}

Bytes readOf(std::uint64_t nodeid, std::uint64_t offset, std::uint32_t size, Opcode opcode = Opcode::read,
             std::uint64_t unique = 1) {
  fuse::ReadIn in{};
  in.offset = offset;
  in.size = size;
  return requestOf(opcode, nodeid, bytesOf(in), unique);
}

Bytes getattrOf(std::uint64_t nodeid) { return requestOf(Opcode::getattr, nodeid, std::string(16, '\0')); }

// The names of a directory's answer, each with the offset after it.
std::vector<std::pair<std::string, std::uint64_t>> entriesOf(const Bytes& answer, bool isPlus) {
  std::vector<std::pair<std::string, std::uint64_t>> entries;
  for (std::size_t at = sizeof(fuse::ReplyHeader); at < answer.size();) {
    if (isPlus) at += sizeof(fuse::EntryOut);
    const auto entry = get<fuse::Dirent>(answer, at);
    at += sizeof entry;
    entries.emplace_back(std::string(reinterpret_cast<const char*>(answer.data() + at), entry.nameBytes),
                         entry.offset);
    at += (entry.nameBytes + 7U) / 8 * 8;
  }
  return entries;
}

class MountTest : public testing::Test {
 protected:
  PackageFolder folder_;
  FakeMount fake_{folder_, OpenMode::cached};

  void bring() { fake_.shared().known.insert(folder_.object, digestOf(folder_.stamp())); }
};

TEST_F(MountTest, AnswersAHitWithoutTheDaemon) {
  bring();
  const Bytes opened = fake_.send(openOf(OBJECT_INO));
  ASSERT_EQ(errorOf(opened), 0);
  EXPECT_NE(get<fuse::OpenOut>(opened, sizeof(fuse::ReplyHeader)).openFlags & fuse::open_flag::KEEP_CACHE,
            0U);
  EXPECT_EQ(bodyOf(fake_.send(readOf(OBJECT_INO, 2990, 100))), std::string(10, 'o'));
  EXPECT_EQ(bodyOf(fake_.send(readOf(OBJECT_INO, 3000, 100))), "");
  EXPECT_EQ(bodyOf(fake_.send(readOf(OBJECT_INO, ~0ULL, 100))), "");
  EXPECT_EQ(errorOf(fake_.send(requestOf(Opcode::release, OBJECT_INO, std::string(24, '\0')))), 0);
  EXPECT_TRUE(fake_.takeFrames().empty());
  EXPECT_FALSE(fake_.mount().isOpen(folder_.object));
}

TEST_F(MountTest, ParksAMissAndAnswersItWhenTheObjectIsHere) {
  EXPECT_EQ(fake_.send(openOf(OBJECT_INO, O_RDONLY, 1)), Bytes{});
  EXPECT_EQ(fake_.send(openOf(OBJECT_INO, O_RDONLY, 2)), Bytes{});
  EXPECT_EQ(fake_.takeFrames(), std::vector<std::uint16_t>{ENSURE}) << "it is asked once";
  EXPECT_FALSE(fake_.mount().isOpen(folder_.object)) << "nobody has it open yet";
  const auto answers = fake_.answerLast();
  ASSERT_EQ(answers.size(), 2U);
  EXPECT_EQ(errorOf(answers[0]), 0);
  EXPECT_EQ(get<fuse::ReplyHeader>(answers[1], 0).unique, 2U);
  EXPECT_TRUE(fake_.mount().isOpen(folder_.object));
}

TEST_F(MountTest, GivesUpAnObjectThatIsTakenAwayAsOftenAsItIsBrought) {
  EXPECT_EQ(fake_.send(openOf(OBJECT_INO)), Bytes{});
  std::vector<Bytes> answers;
  int rounds = 0;
  for (; answers.empty() && rounds < 100; rounds++) {
    const auto questions = fake_.shared().parked.questions();
    ASSERT_EQ(questions.size(), 1U);
    const auto answered = fake_.shared().parked.answer(questions[0].request);
    for (const auto& request : answered->requests) {
      const Bytes answer = fake_.send(request.message, request.channel, request.attempts);
      if (!answer.empty()) answers.push_back(answer);
    }
  }
  ASSERT_EQ(answers.size(), 1U);
  EXPECT_EQ(errorOf(answers[0]), EIO);
  EXPECT_GT(rounds, 2);
}

TEST_F(MountTest, AnswersAnInterruptedReaderAndCancels) {
  EXPECT_EQ(fake_.send(openOf(OBJECT_INO, O_RDONLY, 7)), Bytes{});
  fake_.takeFrames();
  const auto interrupt = [this](std::uint64_t unique) {
    return fake_.send(requestOf(Opcode::interrupt, 0, bytesOf(fuse::InterruptIn{.unique = unique}), 8));
  };
  EXPECT_EQ(errorOf(interrupt(99)), EAGAIN);
  const Bytes answer = interrupt(7);
  EXPECT_EQ(errorOf(answer), EINTR);
  EXPECT_EQ(get<fuse::ReplyHeader>(answer, 0).unique, 7U);
  EXPECT_EQ(fake_.takeFrames(), std::vector<std::uint16_t>{CANCEL});
}

TEST_F(MountTest, ReadsAgainFromTheDaemonWhatWasReplacedMeanwhile) {
  bring();
  ASSERT_EQ(errorOf(fake_.send(openOf(OBJECT_INO))), 0);
  filesystem::remove(folder_.objectPath);
  filesystem::create_symlink("/etc/passwd", folder_.objectPath);
  EXPECT_EQ(fake_.send(readOf(OBJECT_INO, 0, 10)), Bytes{});
  EXPECT_EQ(fake_.takeFrames(), std::vector<std::uint16_t>{ENSURE});
}

TEST_F(MountTest, FailsAReadOfAnOpenFileThatWasCutShort) {
  bring();
  ASSERT_EQ(errorOf(fake_.send(openOf(OBJECT_INO))), 0);
  ASSERT_EQ(bodyOf(fake_.send(readOf(OBJECT_INO, 0, 10))), std::string(10, 'o'));
  filesystem::resize_file(folder_.objectPath, 5);
  EXPECT_EQ(errorOf(fake_.send(readOf(OBJECT_INO, 0, 10))), EIO) << "never zeros, never fewer";
}

TEST_F(MountTest, HasADamagedIndexMadeAgainAndKeepsReadersWaiting) {
  Bytes damaged = folder_.index;
  damaged[nodeAt(damaged, A_INO - 1)] ^= 1U;
  // In place: it is mapped.
  const Fd file(::open(folder_.indexPath.c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_EQ(::pwrite(file.get(), damaged.data(), damaged.size(), 0), static_cast<ssize_t>(damaged.size()));
  EXPECT_EQ(fake_.send(getattrOf(A_INO)), Bytes{});
  EXPECT_EQ(fake_.send(readOf(A_INO, 0, 4096, Opcode::readdirplus, 2)), Bytes{});
  EXPECT_EQ(fake_.send(requestOf(Opcode::lookup, ROOT_INO, std::string_view("a\0", 2), 3)), Bytes{});
  EXPECT_EQ(fake_.takeFrames(), std::vector<std::uint16_t>{INDEX_DAMAGED});
  filesystem::remove(folder_.indexPath);
  PackageFolder::write(folder_.indexPath, folder_.index);
  const auto answers = fake_.answerIndex();
  ASSERT_EQ(answers.size(), 3U);
  for (const auto& answer : answers) EXPECT_EQ(errorOf(answer), 0);
}

TEST_F(MountTest, OutlivesAnIndexThatIsCutWhileItIsMapped) {
  ASSERT_EQ(errorOf(fake_.send(getattrOf(A_INO))), 0);
  filesystem::resize_file(folder_.indexPath, 4096);
  EXPECT_EQ(fake_.send(getattrOf(A_INO)), Bytes{});
  EXPECT_EQ(fake_.send(requestOf(Opcode::lookup, ROOT_INO, std::string_view("none\0", 5))), Bytes{})
      << "an absent name would be kept for ever";
  filesystem::remove(folder_.indexPath);
  PackageFolder::write(folder_.indexPath, folder_.index);
  const auto answers = fake_.answerIndex();
  ASSERT_FALSE(answers.empty());
  EXPECT_EQ(errorOf(fake_.send(getattrOf(A_INO))), 0);
}

TEST_F(MountTest, TakesNoIndexOfAnotherPackage) {
  Bytes other = unsealed(folder_.index);
  other[64] ^= 1U;
  PackageFolder::write(folder_.path + "/other", sealed(other));
  std::string reason;
  EXPECT_FALSE(fake_.mount().replaceIndex(folder_.path + "/other", folder_.manifestPath, reason));
  EXPECT_NE(reason, "");
  EXPECT_FALSE(fake_.mount().replaceIndex(folder_.path + "/absent", folder_.manifestPath, reason));
  EXPECT_EQ(errorOf(fake_.send(getattrOf(A_INO))), 0) << "the old one goes on";
}

TEST_F(MountTest, ListsADirectoryTheSameInPiecesOfAnySize) {
  for (const auto opcode : {Opcode::readdir, Opcode::readdirplus}) {
    const bool isPlus = opcode == Opcode::readdirplus;
    const auto whole = entriesOf(fake_.send(readOf(ROOT_INO, 0, 65'536, opcode)), isPlus);
    ASSERT_EQ(whole.size(), 4U);
    EXPECT_EQ(whole[0].first, ".");
    EXPECT_EQ(whole[1].first, "..");
    EXPECT_EQ(whole[2].first, "a");
    EXPECT_EQ(whole[3].first, "b.bin");
    for (std::uint32_t size = isPlus ? 160 : 32; size < 700; size++) {
      std::vector<std::pair<std::string, std::uint64_t>> all;
      for (std::uint64_t offset = 0;;) {
        const Bytes answer = fake_.send(readOf(ROOT_INO, offset, size, opcode));
        ASSERT_LE(answer.size() - sizeof(fuse::ReplyHeader), size);
        const auto some = entriesOf(answer, isPlus);
        if (some.empty()) break;
        all.insert(all.end(), some.begin(), some.end());
        offset = some.back().second;
      }
      ASSERT_EQ(all, whole) << size;
    }
    EXPECT_EQ(errorOf(fake_.send(readOf(OBJECT_INO, 0, 4096, opcode))), ENOTDIR);
    for (const std::uint64_t offset : {4ULL, 5ULL, 1ULL << 32U, ~0ULL})
      EXPECT_EQ(bodyOf(fake_.send(readOf(ROOT_INO, offset, 4096, opcode))), "") << offset;
  }
}

TEST_F(MountTest, RefusesNodesThatAreNotThere) {
  for (const std::uint64_t nodeid :
       {0ULL, 6ULL, 1ULL << 31U, 0xffff'ffffULL, 1ULL << 33U, ~0ULL, 1ULL << 32U}) {
    EXPECT_EQ(errorOf(fake_.send(getattrOf(nodeid))), ENOENT) << nodeid;
    EXPECT_EQ(errorOf(fake_.send(openOf(nodeid))), ENOENT) << nodeid;
    EXPECT_EQ(errorOf(fake_.send(readOf(nodeid, 0, 1))), ENOENT) << nodeid;
    const Bytes found = fake_.send(requestOf(Opcode::lookup, nodeid, std::string_view("a\0", 2)));
    const bool isAbsent =
        errorOf(found) == ENOENT || get<fuse::EntryOut>(found, sizeof(fuse::ReplyHeader)).nodeid == 0;
    EXPECT_TRUE(isAbsent) << nodeid;
  }
}

TEST_F(MountTest, WritesNothing) {
  bring();
  for (const std::uint32_t flags : {O_WRONLY, O_RDWR, O_RDONLY | O_TRUNC})
    EXPECT_EQ(errorOf(fake_.send(openOf(OBJECT_INO, flags))), EROFS) << flags;
  EXPECT_FALSE(fake_.mount().isOpen(folder_.object));
  const Bytes before = fake_.send(readOf(ROOT_INO, 0, 4096, Opcode::readdir));
  for (std::uint32_t opcode = 0; opcode < 70; opcode++) {
    if (opcode == static_cast<std::uint32_t>(Opcode::interrupt)) continue;
    const Bytes answer = fake_.send(requestOf(static_cast<Opcode>(opcode), ROOT_INO, std::string(128, '\0')));
    const bool wantsNone = opcode == static_cast<std::uint32_t>(Opcode::forget) ||
                           opcode == static_cast<std::uint32_t>(Opcode::batchForget);
    EXPECT_EQ(answer.empty(), wantsNone) << opcode;
  }
  for (const auto opcode : {Opcode::setattr, Opcode::mkdir, Opcode::unlink, Opcode::rename2, Opcode::write,
                            Opcode::create, Opcode::setxattr, Opcode::fallocate, Opcode::copyFileRange})
    EXPECT_EQ(errorOf(fake_.send(requestOf(opcode, ROOT_INO, std::string(128, '\0')))), EROFS);
  EXPECT_EQ(errorOf(fake_.send(requestOf(static_cast<Opcode>(4096), ROOT_INO, ""))), ENOSYS);
  EXPECT_EQ(fake_.send(readOf(ROOT_INO, 0, 4096, Opcode::readdir)), before);
}

TEST_F(MountTest, RefusesMessagesThatAreTooShort) {
  bring();
  for (const auto opcode : {Opcode::lookup, Opcode::access, Opcode::open, Opcode::read, Opcode::readdir,
                            Opcode::getxattr, Opcode::listxattr, Opcode::lseek, Opcode::interrupt}) {
    const int error = errorOf(fake_.send(requestOf(opcode, OBJECT_INO, "")));
    EXPECT_EQ(error, EINVAL) << static_cast<std::uint32_t>(opcode);
  }
  EXPECT_EQ(fake_.send(Bytes(10)), Bytes{}) << "nobody could be answered";
}

TEST_F(MountTest, GivesAttributesOnlyWhereTheyFit) {
  const auto get = [this](std::uint64_t nodeid, const std::string& name, std::uint32_t size) {
    return fake_.send(requestOf(Opcode::getxattr, nodeid,
                                bytesOf(fuse::GetxattrIn{.size = size, .padding = 0}) + name + '\0'));
  };
  EXPECT_EQ(bodyOf(get(A_INO, "user.quilt.meta", 20)), "{\"directory\":\"meta\"}");
  EXPECT_EQ(errorOf(get(A_INO, "user.quilt.meta", 19)), ERANGE);
  const Bytes sized = get(A_INO, "user.quilt.meta", 0);
  EXPECT_EQ(bobbin::test::get<fuse::GetxattrOut>(sized, sizeof(fuse::ReplyHeader)).size, 20U);
  EXPECT_EQ(bodyOf(get(OBJECT_INO, "user.quilt.cached", 10)), "true");
  EXPECT_EQ(bodyOf(get(OBJECT_INO, "user.quilt.verified", 10)), "false");
  EXPECT_EQ(errorOf(get(OBJECT_INO, "user.quilt.meta", 10)), ENODATA);
  EXPECT_EQ(errorOf(get(OBJECT_INO, "user.other", 10)), ENODATA);
  EXPECT_EQ(errorOf(get(OBJECT_INO, "security.capability", 10)), ENODATA);
}

// The metadata's bytes lie in the manifest, under a CRC-32 of the index.
TEST_F(MountTest, NeverGivesMetadataThatWasAltered) {
  const Fd file(::open(folder_.manifestPath.c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_EQ(::pwrite(file.get(), "X", 1, 105), 1);
  EXPECT_EQ(
      fake_.send(requestOf(Opcode::getxattr, A_INO,
                           bytesOf(fuse::GetxattrIn{.size = 100, .padding = 0}) + "user.quilt.meta" + '\0')),
      Bytes{});
  EXPECT_EQ(fake_.takeFrames(), std::vector<std::uint16_t>{INDEX_DAMAGED});
}

TEST(Mount, ServesThreadsWhileTheServerEvictsAndBrings) {
  const PackageFolder folder;
  constexpr unsigned THREADS = 3;
  constexpr int ROUNDS = 1500;
  for (const auto mode : {OpenMode::cached, OpenMode::passthrough, OpenMode::none}) {
    FakeMount fake(folder, mode, THREADS + 1);
    std::atomic<unsigned> running{THREADS};
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (unsigned thread = 0; thread < THREADS; thread++) {
      threads.emplace_back([&, thread] {
        Random random(thread);
        const std::string expected(100, 'o');
        for (int i = 0; i < ROUNDS; i++) {
          const std::uint64_t unique = 2 + 2 * (static_cast<std::uint64_t>(i) * THREADS + thread);
          const std::uint64_t nodeid = random.below(3) == 0 ? NVME_INO : OBJECT_INO;
          Bytes answer = fake.send(openOf(nodeid, O_RDONLY, unique), thread);
          const int error = errorOf(answer);
          if (mode == OpenMode::none ? error != ENOSYS : error > 0) wrong++;
          const bool isOpen = error == 0;
          if (isOpen || mode == OpenMode::none) {
            answer = fake.send(readOf(OBJECT_INO, random.below(2900), 100, Opcode::read, unique), thread);
            if (!answer.empty() && bodyOf(answer) != expected) wrong++;
          }
          if (isOpen) fake.send(requestOf(Opcode::release, nodeid, std::string(24, '\0'), unique), thread);
          answer =
              fake.send(requestOf(Opcode::lookup, ROOT_INO, std::string_view("b.bin\0", 6), unique), thread);
          if (errorOf(answer) != 0) wrong++;
        }
        running--;
      });
    }
    // The server's thread. Parked requests are answered on the channel that they came from, which is
    // another thread's here: so they are dropped, as if the readers had been killed.
    Random random(99);
    while (running > 0) {
      switch (random.below(4)) {
        case 0:
          fake.evict();
          break;
        case 1:
          fake.mount().takeAccesses();
          fake.mount().totals();
          break;
        case 2:
          fake.shared().parked.drop(1);
          fake.shared().parked.sweep(Clock::now());
          break;
        default:
          fake.shared().known.insert(folder.object, digestOf(folder.stamp()));
          fake.mount().nameObject(NVME_INO, folder.object);
      }
    }
    for (auto& thread : threads) thread.join();
    EXPECT_EQ(wrong.load(), 0) << static_cast<int>(mode);
    fake.reset();
  }
}

}  // namespace
}  // namespace bobbin::test
