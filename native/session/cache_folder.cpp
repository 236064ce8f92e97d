#include "session/cache_folder.hpp"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "session/mountpoint.hpp"

namespace bobbin {

namespace {
constexpr std::uint64_t RESOLVE_PLAINLY =
    RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
}

int CacheFolder::open(const std::string& path) {
  path_ = path;
  while (path_.size() > 1 && path_.ends_with('/')) path_.pop_back();
  folder_.reset(::open(path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  return folder_ ? 0 : errno;
}

Fd CacheFolder::openFile(const std::string& path, int& error) const {
  std::string relative = pathBelow(path_, path);
  // A cache that was named by a link.
  if (relative.empty()) relative = pathBelow(pathOf(folder_.get()), path);
  struct open_how how {};
  // Without O_NONBLOCK, a fifo would make us wait for a writer.
  how.flags = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  how.resolve = RESOLVE_PLAINLY;
  error = EXDEV;
  if (relative.empty()) return Fd();
  long opened = ::syscall(SYS_openat2, folder_.get(), relative.c_str(), &how, sizeof how);
  // Before Linux 5.6.
  if (opened < 0 && errno == ENOSYS)
    opened = ::openat(folder_.get(), relative.c_str(), static_cast<int>(how.flags) | O_NOFOLLOW);
  error = opened < 0 ? errno : 0;
  return Fd(static_cast<int>(opened));
}

Fd CacheFolder::openFolder(const char* relative) const {
  struct open_how how {};
  how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_PLAINLY;
  // Before Linux 5.6 there is no way to go there without following links, so there is no folder.
  return Fd(static_cast<int>(::syscall(SYS_openat2, folder_.get(), relative, &how, sizeof how)));
}

bool CacheFolder::isReplaced(const char* relative, int folder) const {
  struct stat held {};
  struct stat named {};
  if (::fstat(folder, &held) != 0) return false;
  return ::fstatat(folder_.get(), relative, &named, 0) != 0 || named.st_ino != held.st_ino ||
         named.st_dev != held.st_dev;
}

}  // namespace bobbin
