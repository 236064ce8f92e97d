// The daemon's doors: one unix socket per right. They are held here, so that callers wait while a daemon is
// started again, and handed to each daemon. daemon/control/doors.ts says what each of them is for.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "link/supervisor.hpp"
#include "link/system.hpp"
#include "link/wire.hpp"

namespace bobbin {

// Owned by the server, on whose thread it is called.
class Doors {
 public:
  // `controlPath`: of the owner's door, <name>.sock; the others are <name>.leases.sock, <name>.status.sock, and
  // where others may mount <name>.mounts.sock, which the daemon does not get (callers.hpp).
  Doors(std::string controlPath, bool isForMounts);

  // Listens at each, as the files of whoever this thread acts as. Says what is wrong, or nothing.
  std::string listen();
  // Their files, removed.
  void remove() const;

  // For the owner file: JSON without its braces.
  std::string facts() const;
  std::vector<link::Inherited> inherited() const;
  // -1: others may not mount.
  int mounts() const { return listeners_[MOUNTS].get(); }
  std::vector<int> descriptors() const;
  // For a bobbin-fuse that replaces this one in place.
  void save(wire::Writer& out) const;
  void restore(wire::Reader& in);

 private:
  // Of those that the daemon gets, and of all.
  static constexpr std::size_t MOUNTS = 3;
  static constexpr std::size_t ALL = 4;

  std::size_t count_;
  std::array<std::string, ALL> paths_;
  std::array<Fd, ALL> listeners_;
};

}  // namespace bobbin
