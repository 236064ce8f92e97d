#include "session/cache_folder.hpp"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/syscall.h>

#include "session/mountpoint.hpp"

namespace bobbin {

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
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS | RESOLVE_NO_XDEV;
  error = EXDEV;
  if (relative.empty()) return Fd();
  long opened = ::syscall(SYS_openat2, folder_.get(), relative.c_str(), &how, sizeof how);
  // Before Linux 5.6.
  if (opened < 0 && errno == ENOSYS)
    opened = ::openat(folder_.get(), relative.c_str(), static_cast<int>(how.flags) | O_NOFOLLOW);
  error = opened < 0 ? errno : 0;
  return Fd(static_cast<int>(opened));
}

}  // namespace bobbin
