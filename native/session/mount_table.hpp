// What the kernel says is mounted where: a text that can be read without touching any mount.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace bobbin {

struct MountedAt {
  // Of the mount, unique among those that there are.
  int id = 0;
  // Of the mount that its mountpoint lies in.
  int parent = 0;
  // major:minor of the filesystem; for FUSE the minor is the connection's number.
  std::string device;
  std::string mountpoint;
  std::string type;
  std::string source;
};

// Every mount of our namespace, in the order in which they were mounted.
std::vector<MountedAt> readMountTable();
std::optional<MountedAt> mountWithId(const std::vector<MountedAt>& table, int id);
// A mount that lies on top of another, or inside it.
std::optional<MountedAt> mountOver(const std::vector<MountedAt>& table, int id);

}  // namespace bobbin
