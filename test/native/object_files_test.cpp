// What may lie in an object's place.
#include "session/object_files.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>

#include <filesystem>
#include <fstream>

#include "support.hpp"

namespace bobbin::test {
namespace {

using Found = ObjectFiles::Found;
namespace filesystem = std::filesystem;

class ObjectFilesTest : public testing::Test {
 protected:
  ObjectFilesTest() : files_(cacheFolder_, known_) {
    std::string pattern = (filesystem::temp_directory_path() / "bobbin-objects-XXXXXX").string();
    cache_ = ::mkdtemp(pattern.data());
    EXPECT_EQ(cacheFolder_.open(cache_), 0);
    EXPECT_EQ(files_.openFolder(cache_), 0);
    for (std::size_t i = 0; i < name_.bytes.size(); i++) name_.bytes[i] = static_cast<std::uint8_t>(0xa0 + i);
    folder_ = cache_ + "/objects/v1/sha256/a0";
    path_ = folder_ + "/" + hexOf(name_.bytes);
    filesystem::create_directories(folder_);
    write(path_, "bytes");
    verify();
  }
  ~ObjectFilesTest() override { filesystem::remove_all(cache_); }

  static void write(const std::string& path, const std::string& bytes) { std::ofstream(path) << bytes; }

  // As the daemon does, after it has compared the bytes: with what the path leads to.
  void verify() {
    struct stat stats {};
    ASSERT_EQ(::stat(path_.c_str(), &stats), 0);
    known_.insert(name_,
                  digestOf({.inode = stats.st_ino,
                            .size = static_cast<std::uint64_t>(stats.st_size),
                            .mtimeNs = stats.st_mtim.tv_sec * 1'000'000'000L + stats.st_mtim.tv_nsec,
                            .ctimeNs = stats.st_ctim.tv_sec * 1'000'000'000L + stats.st_ctim.tv_nsec}));
  }

  Found open(std::uint64_t size = 5) {
    Fd file;
    const auto opened = files_.open(name_, size, file);
    EXPECT_EQ(files_.look(name_, size).found, opened.found);
    return opened.found;
  }

  std::string cache_;
  std::string folder_;
  std::string path_;
  link::ObjectName name_;
  CacheFolder cacheFolder_;
  KnownObjects known_;
  ObjectFiles files_;
};

TEST_F(ObjectFilesTest, GoesOnInAFolderThatWasMadeAgain) {
  filesystem::remove_all(cache_ + "/objects");
  EXPECT_EQ(open(), Found::unknown);
  filesystem::create_directories(folder_);
  write(path_, "bytes");
  EXPECT_EQ(open(), Found::unknown) << "another file, until the daemon has verified it";
  verify();
  EXPECT_EQ(open(), Found::ok);
}

TEST_F(ObjectFilesTest, FollowsNoLinkToAFolderThatWasMadeAgain) {
  filesystem::rename(cache_ + "/objects", cache_ + "/elsewhere");
  filesystem::create_directory_symlink(cache_ + "/elsewhere", cache_ + "/objects");
  // The folder that is open is the same one.
  EXPECT_EQ(open(), Found::ok);
  filesystem::remove_all(cache_ + "/elsewhere");
  filesystem::create_directories(cache_ + "/other/v1/sha256/a0");
  filesystem::remove(cache_ + "/objects");
  filesystem::create_directory_symlink(cache_ + "/other", cache_ + "/objects");
  write(path_, "bytes");
  verify();
  EXPECT_EQ(open(), Found::unknown);
}

TEST_F(ObjectFilesTest, OpensWhatWasVerifiedAndGivesItsBytes) {
  Fd file;
  ASSERT_EQ(files_.open(name_, 5, file).found, Found::ok);
  char bytes[6] = {};
  EXPECT_EQ(::read(file.get(), bytes, 5), 5);
  EXPECT_STREQ(bytes, "bytes");
  EXPECT_EQ(::fcntl(file.get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  EXPECT_NE(::fcntl(file.get(), F_GETFD) & FD_CLOEXEC, 0);
  EXPECT_TRUE(files_.exists(name_));
}

TEST_F(ObjectFilesTest, AsksForWhatIsNotThereOrWasNotVerified) {
  link::ObjectName other = name_;
  other.bytes[31] ^= 1U;
  Fd file;
  EXPECT_EQ(files_.open(other, 5, file).found, Found::unknown);
  EXPECT_FALSE(files_.exists(other));
  known_.erase(name_);
  EXPECT_EQ(open(), Found::unknown);
  EXPECT_TRUE(files_.exists(name_));
}

TEST_F(ObjectFilesTest, AsksAgainForAFileThatWasCutGrownOrReplaced) {
  EXPECT_EQ(open(6), Found::unknown) << "the entry is of another size";
  filesystem::resize_file(path_, 4);
  EXPECT_EQ(open(), Found::unknown);
  EXPECT_EQ(open(4), Found::unknown);
  filesystem::resize_file(path_, 5);
  EXPECT_EQ(open(), Found::unknown) << "it was written to";
  filesystem::remove(path_);
  write(path_, "bytez");
  EXPECT_EQ(open(), Found::unknown);
  verify();
  EXPECT_EQ(open(), Found::ok);
}

TEST_F(ObjectFilesTest, FollowsNoSymbolicLink) {
  filesystem::rename(path_, cache_ + "/elsewhere");
  filesystem::create_symlink(cache_ + "/elsewhere", path_);
  verify();
  EXPECT_EQ(open(), Found::unknown);
  EXPECT_FALSE(files_.exists(name_));
}

TEST_F(ObjectFilesTest, FollowsNoSymbolicLinkInTheFoldersAbove) {
  filesystem::rename(folder_, cache_ + "/elsewhere");
  filesystem::create_directory_symlink(cache_ + "/elsewhere", folder_);
  verify();
  Fd file;
  EXPECT_EQ(files_.open(name_, 5, file).found, Found::unknown);
}

TEST_F(ObjectFilesTest, TakesNothingButARegularFile) {
  filesystem::remove(path_);
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  verify();
  EXPECT_EQ(open(0), Found::unknown) << "a fifo";
  filesystem::remove(path_);
  filesystem::create_directory(path_);
  verify();
  EXPECT_EQ(open(filesystem::is_directory(path_) ? 4096 : 0), Found::unknown) << "a folder";
  filesystem::remove(path_);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  const Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const filesystem::path before = filesystem::current_path();
  filesystem::current_path(folder_);
  std::strcpy(address.sun_path, hexOf(name_.bytes).c_str());
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  filesystem::current_path(before);
  verify();
  EXPECT_EQ(open(0), Found::unknown) << "a socket";
  filesystem::remove(path_);
  if (::mknod(path_.c_str(), S_IFCHR | 0600, ::makedev(1, 5)) == 0) {
    verify();
    const auto found = open(0);
    // Without the right to open devices it is an error of ours, and nothing is read either.
    EXPECT_NE(found, Found::ok) << "a device";
  }
}

TEST_F(ObjectFilesTest, SaysSoWhenThereAreNoDescriptorsLeft) {
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &before), 0);
  // The lowest number that is free.
  const int lowest = ::dup(0);
  ASSERT_GE(lowest, 0);
  ::close(lowest);
  rlimit limit = before;
  limit.rlim_cur = static_cast<rlim_t>(lowest);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &limit), 0);
  Fd file;
  const auto opened = files_.open(name_, 5, file);
  const auto looked = files_.look(name_, 5);
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(opened.found, Found::error);
  EXPECT_EQ(opened.error, EMFILE);
  EXPECT_EQ(looked.found, Found::ok) << "looking needs none";
}

TEST_F(ObjectFilesTest, LeavesNoDescriptorOpenOfWhatIsNotTheObject) {
  filesystem::resize_file(path_, 4);
  const int before = ::dup(0);
  ::close(before);
  for (int i = 0; i < 10; i++) open();
  const int after = ::dup(0);
  ::close(after);
  EXPECT_EQ(after, before);
}

}  // namespace
}  // namespace bobbin::test
