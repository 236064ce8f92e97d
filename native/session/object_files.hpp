// The object files of the store, opened by name and only below its folder: no symbolic link is
// followed, nothing but a regular file is opened, and a file counts only while its stamp is the one
// that the daemon has verified.
//
// Owned by the server; any thread may call it.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "index/index_view.hpp"
#include "link/frames.hpp"
#include "link/system.hpp"
#include "session/cache_folder.hpp"
#include "session/known_objects.hpp"

namespace bobbin {

class ObjectFiles {
 public:
  ObjectFiles(const CacheFolder& cache, KnownObjects& known) : cache_(cache), known_(known) {}

  // `<cache>/objects/v1`, which is made when it is missing. 0 or an errno.
  int openFolder(const std::string& cache);

  enum class Found { ok, unknown, error };

  struct Look {
    Found found = Found::unknown;
    // With `error`: what is wrong here, not with the object (no descriptors left, …).
    int error = 0;
    // With `ok`.
    std::uint64_t stampDigest = 0;
  };

  // Opens an object whose file is `size` bytes long and was verified. `unknown`: ask the daemon.
  Look open(const link::ObjectName& name, std::uint64_t size, Fd& file);

  // The same without opening it.
  Look look(const link::ObjectName& name, std::uint64_t size);

  // What a path says about the cache, for extended attributes.
  bool exists(const link::ObjectName& name) const;

 private:
  Look compare(const link::ObjectName& name, std::uint64_t size, const struct stat& stats);

  // After a look that found nothing: somebody has taken the folder away, and the daemon has made it again.
  bool hasNewFolder();

  const CacheFolder& cache_;
  KnownObjects& known_;
  std::mutex foldersMutex_;
  // The last one is in use; those before it may be in the hands of a thread.
  std::vector<Fd> folders_;
  std::atomic<int> folder_ = -1;
};

// By its hash alone. Nothing: objects known by a CRC64NVME are named by the daemon.
std::optional<link::ObjectName> objectNameOf(const Node& node);

}  // namespace bobbin
