// Putting a connection at a mountpoint and taking it away, and what the kernel says is mounted where.
//
// Root, and whoever has CAP_SYS_ADMIN in a user namespace with a mount namespace of its own, mounts by
// mount(2); everybody else through the program fusermount3, which hands /dev/fuse back.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "link/frames.hpp"
#include "link/system.hpp"

namespace bobbin {

struct MountedAt {
  // Of the mount, unique among those that there are.
  int id = 0;
  // major:minor of the filesystem; for FUSE the minor is the connection's number.
  std::string device;
  std::string mountpoint;
  std::string type;
  std::string source;
};

// Every mount of our namespace, in the order in which they were mounted.
std::vector<MountedAt> readMountTable();
// What is on top at a path.
std::optional<MountedAt> mountAt(const std::vector<MountedAt>& table, const std::string& path);

struct MountFailed {
  link::MountFailure cause = link::MountFailure::other;
  std::string message;
};

// Opens /dev/fuse and mounts. `below`: folders that mountpoints must lie in; empty: anywhere, since who
// asks may do it by itself. On failure, `failed` says what to do.
Fd mountFuse(const link::Mount& request, const std::vector<std::string>& below, MountFailed& failed);

// 0 or an errno; EBUSY: it is in use. `isLazy` detaches it now, and its files last until they are closed.
int unmountPath(const std::string& mountpoint, bool isLazy);

}  // namespace bobbin
