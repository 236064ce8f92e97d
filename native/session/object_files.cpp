#include "session/object_files.hpp"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <array>
#include <cstring>

namespace bobbin {

namespace {

constexpr const char* FOLDER = "objects/v1";
constexpr std::array<const char*, 3> FOLDERS = {"sha256", "sha2-256-chunked", "crc64nvme"};

// "<type>/<2 hex>/<64 hex>", without allocation.
class ObjectPath {
 public:
  explicit ObjectPath(const link::ObjectName& name) {
    static constexpr char digits[] = "0123456789abcdef";
    char* at = text_.data();
    const char* folder = FOLDERS[name.type % FOLDERS.size()];
    at = stpcpy(at, folder);
    *at++ = '/';
    *at++ = digits[name.bytes[0] >> 4U];
    *at++ = digits[name.bytes[0] & 15U];
    *at++ = '/';
    for (const auto byte : name.bytes) {
      *at++ = digits[byte >> 4U];
      *at++ = digits[byte & 15U];
    }
    *at = '\0';
  }
  const char* c_str() const { return text_.data(); }

 private:
  std::array<char, 96> text_{};
};

link::Stamp stampOf(const struct stat& stats) {
  return {.inode = stats.st_ino,
          .size = static_cast<std::uint64_t>(stats.st_size),
          .mtimeNs = stats.st_mtim.tv_sec * 1'000'000'000L + stats.st_mtim.tv_nsec,
          .ctimeNs = stats.st_ctim.tv_sec * 1'000'000'000L + stats.st_ctim.tv_nsec};
}

// Of opening and of looking: is it the object, or is it us?
ObjectFiles::Look whatFailed(int failure) {
  switch (failure) {
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case EACCES:
    case EPERM:
      return {.found = ObjectFiles::Found::error, .error = failure};
    default:
      // Missing, a symbolic link (ELOOP), a socket (ENXIO), damaged on disk: the daemon mends it.
      return {};
  }
}

}  // namespace

std::optional<link::ObjectName> objectNameOf(const Node& node) {
  link::ObjectName name;
  switch (node.hashType) {
    case HashType::sha256:
      name.type = 0;
      break;
    case HashType::sha256Chunked:
      name.type = 1;
      break;
    case HashType::crc64nvme:
      return std::nullopt;
  }
  std::memcpy(name.bytes.data(), node.digest.data(), name.bytes.size());
  return name;
}

int ObjectFiles::openFolder(const std::string& cache) {
  std::string path = cache;
  for (const char* part : {"/objects", "/v1"}) {
    path += part;
    if (::mkdir(path.c_str(), 0750) != 0 && errno != EEXIST) return errno;
  }
  Fd folder(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!folder) return errno;
  folder_ = folder.get();
  folders_.push_back(std::move(folder));
  return 0;
}

bool ObjectFiles::hasNewFolder() {
  if (!cache_.isReplaced(FOLDER, folder_)) return false;
  const std::lock_guard lock(foldersMutex_);
  // Another thread has been here.
  if (!cache_.isReplaced(FOLDER, folder_)) return true;
  Fd folder = cache_.openFolder(FOLDER);
  if (!folder) return false;
  folder_ = folder.get();
  folders_.push_back(std::move(folder));
  return true;
}

ObjectFiles::Look ObjectFiles::open(const link::ObjectName& name, std::uint64_t size, Fd& file) {
  struct open_how how {};
  // Without O_NONBLOCK, a fifo in an object's place would make us wait for a writer.
  how.flags = O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
  const ObjectPath path(name);
  long opened = ::syscall(SYS_openat2, folder_.load(), path.c_str(), &how, sizeof how);
  if (opened < 0 && errno == ENOSYS) {
    // Before Linux 5.6. The folders above are the daemon's own; the file itself is still no link.
    opened = ::openat(folder_, path.c_str(), static_cast<int>(how.flags));
  }
  if (opened < 0) {
    const int failure = errno;
    return failure == ENOENT && hasNewFolder() ? open(name, size, file) : whatFailed(failure);
  }
  file.reset(static_cast<int>(opened));
  struct stat stats {};
  if (::fstat(file.get(), &stats) != 0) return whatFailed(errno);
  return compare(name, size, stats);
}

ObjectFiles::Look ObjectFiles::look(const link::ObjectName& name, std::uint64_t size) {
  struct stat stats {};
  if (::fstatat(folder_, ObjectPath(name).c_str(), &stats, AT_SYMLINK_NOFOLLOW) != 0) {
    const int failure = errno;
    return failure == ENOENT && hasNewFolder() ? look(name, size) : whatFailed(failure);
  }
  return compare(name, size, stats);
}

ObjectFiles::Look ObjectFiles::compare(const link::ObjectName& name, std::uint64_t size,
                                       const struct stat& stats) {
  if (!S_ISREG(stats.st_mode) || static_cast<std::uint64_t>(stats.st_size) != size) return {};
  const link::Stamp stamp = stampOf(stats);
  if (!known_.matches(name, stamp)) return {};
  return {.found = Found::ok, .error = 0, .stampDigest = digestOf(stamp)};
}

bool ObjectFiles::exists(const link::ObjectName& name) const {
  struct stat stats {};
  return ::fstatat(folder_, ObjectPath(name).c_str(), &stats, AT_SYMLINK_NOFOLLOW) == 0 &&
         S_ISREG(stats.st_mode);
}

}  // namespace bobbin
