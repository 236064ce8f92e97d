#include "session/leftover.hpp"

#include <fcntl.h>
#include <sys/mount.h>

#include "session/mount_table.hpp"
#include "session/mountpoint.hpp"

namespace bobbin {

namespace {

std::string describe(const MountedAt& mounted) {
  return mounted.source + " (" + mounted.type + ", on " + mounted.mountpoint + ")";
}

// A mount of a package, or an overlay that the command line put on one (cli/overlay/overlay.ts). What fuse-overlayfs serves
// does not tell for whom: it is unmounted only for root, who has looked up its number.
bool isOurs(const MountedAt& mounted) {
  return mounted.type == "fuse.bobbin" || mounted.type == "fuse.fuse-overlayfs" ||
         (mounted.type == "overlay" && mounted.source.starts_with("bobbin-scratch:"));
}

// 0 or an errno. A descriptor of the mount makes it busy, so it is closed where that counts. Then the way is one
// name in a folder that is held: a folder that something is mounted on cannot be renamed where that is seen, and
// from another mount namespace only its owner could put another folder that they own in its place.
int unmountIn(const Fd& parent, const std::string& name, Fd mount, bool isLazy) {
  const std::string held = "/proc/self/fd/";
  if (isLazy) return ::umount2((held + std::to_string(mount.get())).c_str(), MNT_DETACH) == 0 ? 0 : errno;
  mount.reset();
  const std::string path = held + std::to_string(parent.get()) + "/" + name;
  return ::umount2(path.c_str(), UMOUNT_NOFOLLOW) == 0 ? 0 : errno;
}

}  // namespace

LeftoverUnmounted unmountLeftover(const std::string& path, int mountId, bool isLazy) {
  using enum LeftoverOutcome;
  const auto wanted = mountWithId(readMountTable(), mountId);
  if (!wanted) return {gone, ""};
  if (!isOurs(*wanted)) return {other, describe(*wanted) + " is not a mount of Bobbin's"};
  std::string name;
  std::string why;
  const Fd parent = openParent(path, name, why);
  if (!parent) return {failed, why};
  Fd mount = openStep(parent.get(), name, why);
  if (!mount) return {failed, why};
  if (const int found = mountIdOf(mount.get()); found != mountId) {
    if (found == mountIdOf(parent.get())) return {other, "the mount is not there, it is on " + wanted->mountpoint};
    const auto there = mountWithId(readMountTable(), found);
    return {other, (there ? describe(*there) : "something else") + " is mounted there"};
  }
  if (const auto over = mountOver(readMountTable(), mountId))
    return {other, describe(*over) + " is mounted on it or inside it: umount that first"};
  const int error = unmountIn(parent, name, std::move(mount), isLazy);
  if (error == 0) return {};
  return {error == EBUSY ? busy : failed, errorText(error)};
}

}  // namespace bobbin
