// The cache's folder, held open, and files below it. Their paths are the daemon's word: no link and no other
// mount is followed, so that a path can lead neither out of the cache nor into a mount of ours, where this
// process would wait for itself.
#pragma once

#include <string>

#include "link/system.hpp"

namespace bobbin {

// Opened once by the server; any thread may use it then.
class CacheFolder {
 public:
  // 0 or an errno.
  int open(const std::string& path);
  // As it was opened, without a slash at its end.
  const std::string& path() const { return path_; }
  // For reading. Not open: `error` says why; EXDEV: it does not lie below.
  Fd openFile(const std::string& path, int& error) const;
  // A folder below, by its path from here, as a place.
  Fd openFolder(const char* relative) const;
  // Another folder (or none) has the name of that one, which was open as `folder`.
  bool isReplaced(const char* relative, int folder) const;

 private:
  std::string path_;
  Fd folder_;
};

}  // namespace bobbin
