// The object files of the store, opened by name and only below its folder: no symbolic link is
// followed, nothing but a regular file is opened, and a file counts only while its stamp is the one
// that the daemon has verified.
//
// Owned by the server; any thread may call it.
#pragma once

#include <string>

#include "index/index_view.hpp"
#include "link/frames.hpp"
#include "session/known_objects.hpp"
#include "session/system.hpp"

namespace bobbin {

class ObjectFiles {
 public:
  explicit ObjectFiles(KnownObjects& known) : known_(known) {}

  // `<cache>/objects/v1`, which is made when it is missing. 0 or an errno.
  int openFolder(const std::string& cache);

  enum class Found { ok, unknown, error };

  // Opens an object whose file is `size` bytes long and was verified. `unknown`: ask the daemon.
  // `error`: `error` says what is wrong here, not with the object (no descriptors left, …).
  Found open(const link::ObjectName& name, std::uint64_t size, Fd& file, int& error);

  // The same without opening it.
  Found look(const link::ObjectName& name, std::uint64_t size, int& error);

  // What a path says about the cache, for extended attributes.
  bool exists(const link::ObjectName& name) const;

 private:
  KnownObjects& known_;
  Fd folder_;
};

// By its hash alone. Nothing: objects known by a CRC64NVME are named by the daemon.
std::optional<link::ObjectName> objectNameOf(const Node& node);

}  // namespace bobbin
