#include "session/attachment.hpp"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <algorithm>

#include "protocol/negotiate.hpp"
#include "session/fusermount.hpp"
#include "session/mount_table.hpp"
#include "session/privileges.hpp"

namespace bobbin {

namespace {

constexpr const char* CONTAINER_ADVICE =
    "in a container, docker run --device /dev/fuse --cap-add SYS_ADMIN --security-opt apparmor=unconfined";

MountFailed deviceMissing(int error) {
  if (error == EACCES || error == EPERM)
    return {link::MountFailure::unavailable,
            "/dev/fuse is not open to this user: run as root, or have root chmod 666 /dev/fuse"};
  if (error == EMFILE || error == ENFILE)
    return {link::MountFailure::other, "too many open files: raise the limit (ulimit -n, LimitNOFILE=)"};
  return {link::MountFailure::unavailable,
          std::string("there is no /dev/fuse here: run modprobe fuse as root; ") + CONTAINER_ADVICE};
}

MountFailed mountRefused(const std::string& mountpoint, int error) {
  const std::string what = "cannot mount on " + mountpoint + ": ";
  switch (error) {
    case EPERM:
      return {link::MountFailure::unavailable,
              what + "mount(2) was refused, it needs CAP_SYS_ADMIN; " + CONTAINER_ADVICE};
    case ENODEV:
      return {link::MountFailure::unavailable, what + "this kernel has no FUSE: run modprobe fuse as root"};
    case ENOENT:
    case ENOTDIR:
    case ELOOP:
    case ENAMETOOLONG:
    case EACCES:
      return {link::MountFailure::mountpoint, what + errorText(error)};
    default:
      return {link::MountFailure::other, what + errorText(error)};
  }
}

// The calls that make a mount before it has a place (Linux 5.2), by numbers of linux/mount.h, which does not
// go together with sys/mount.h.
constexpr unsigned FSOPEN_CLOSE_ON_EXEC = 1;
constexpr unsigned FSMOUNT_CLOSE_ON_EXEC = 1;
constexpr unsigned SET_FLAG = 0;
constexpr unsigned SET_STRING = 1;
constexpr unsigned CREATE = 6;
constexpr unsigned ATTR_RDONLY_NOSUID_NODEV = 1U | 2U | 4U;
constexpr unsigned MOVE_FROM_AND_TO_DESCRIPTORS = 0x04U | 0x40U;

struct Option {
  const char* name;
  // Nothing: the name says it all.
  std::optional<std::string> value;
};

std::vector<Option> optionsFor(const link::Mount& request, const MountOwner& owner, int connection) {
  std::vector<Option> options = {{"fd", std::to_string(connection)},
                                 {"rootmode", "40000"},
                                 {"user_id", std::to_string(owner.uid)},
                                 {"group_id", std::to_string(owner.gid)},
                                 {"default_permissions", std::nullopt},
                                 {"max_read", std::to_string(fuse::READ_BYTES_MAX)}};
  if (request.allowOther) options.push_back({"allow_other", std::nullopt});
  return options;
}

// A mount without a place. Not open: this kernel, or a filter of system calls, wants mount(2).
Fd makeMount(const link::Mount& request, const MountOwner& owner, int connection) {
  const Fd context(static_cast<int>(::syscall(SYS_fsopen, "fuse", FSOPEN_CLOSE_ON_EXEC)));
  if (!context) return Fd();
  const auto configure = [&](unsigned command, const char* name, const char* value) {
    return ::syscall(SYS_fsconfig, context.get(), command, name, value, 0) == 0;
  };
  auto options = optionsFor(request, owner, connection);
  options.insert(options.end(), {{"subtype", "bobbin"}, {"source", request.source}, {"ro", std::nullopt}});
  for (const auto& [name, value] : options) {
    const bool isTaken =
        value ? configure(SET_STRING, name, value->c_str()) : configure(SET_FLAG, name, nullptr);
    if (!isTaken) return Fd();
  }
  if (!configure(CREATE, nullptr, nullptr)) return Fd();
  return Fd(static_cast<int>(
      ::syscall(SYS_fsmount, context.get(), FSMOUNT_CLOSE_ON_EXEC, ATTR_RDONLY_NOSUID_NODEV)));
}

// 0 or an errno. `mountId`: 0 where the kernel does not say.
int mountOn(int folder, const link::Mount& request, const MountOwner& owner, Fd& connection, int& mountId) {
  if (const Fd mount = makeMount(request, owner, connection.get())) {
    mountId = mountIdOf(mount.get());
    const long moved =
        ::syscall(SYS_move_mount, mount.get(), "", folder, "", MOVE_FROM_AND_TO_DESCRIPTORS);
    return moved == 0 ? 0 : errno;
  }
  // A connection that was begun serves no second mount.
  connection.reset(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!connection) return errno;
  std::string options;
  for (const auto& [name, value] : optionsFor(request, owner, connection.get()))
    options += (options.empty() ? "" : ",") + std::string(name) + (value ? "=" + *value : "");
  const std::string target = "/proc/self/fd/" + std::to_string(folder);
  const int mounted = ::mount(request.source.c_str(), target.c_str(), "fuse.bobbin",
                              MS_RDONLY | MS_NOSUID | MS_NODEV, options.c_str());
  return mounted == 0 ? 0 : errno;
}

// A folder above may be renamed between a look at a path and a look at the table.
constexpr int LOOKS = 100;

// The mount that was made on a folder since `before`, where nobody told its id.
std::optional<MountedAt> newMount(const std::vector<MountedAt>& before, int folder, const std::string& source) {
  const int parent = mountIdOf(folder);
  for (int look = 0; look < LOOKS; look++) {
    const std::string path = pathOf(folder);
    for (const MountedAt& mounted : readMountTable()) {
      if (mounted.parent == parent && mounted.mountpoint == path && mounted.type == "fuse.bobbin" &&
          mounted.source == source && !mountWithId(before, mounted.id))
        return mounted;
    }
  }
  return std::nullopt;
}

// 0 or an errno of umount2(2), which goes from the folder to what is mounted on it.
int unmountOn(int folder, bool isLazy) {
  const std::string path = "/proc/self/fd/" + std::to_string(folder);
  return ::umount2(path.c_str(), isLazy ? MNT_DETACH : 0) == 0 ? 0 : errno;
}

// Whether the mount lies where it was put.
bool isInPlace(const Attachment& attachment, std::optional<MountedAt>& ours, std::vector<MountedAt>& table) {
  for (int look = 0; look < LOOKS; look++) {
    table = readMountTable();
    ours = mountWithId(table, attachment.mountId);
    if (ours && ours->device != attachment.device) ours.reset();
    if (!ours) return false;
    if (ours->parent == mountIdOf(attachment.folder.get()) &&
        ours->mountpoint == pathOf(attachment.folder.get()))
      return true;
  }
  return false;
}

}  // namespace

std::optional<Attachment> attach(const link::Mount& request, const MountOwner& owner,
                                 const std::vector<MountRoot>& roots, Fd& connection, MountFailed& failed) {
  Attachment attachment;
  attachment.folder = openMountpoint(request.mountpoint, roots,
                                     owner.mustOwnFolder ? std::optional(owner.uid) : std::nullopt, failed);
  if (!attachment.folder) return std::nullopt;
  const auto before = readMountTable();
  // The helper is for users; root that may not mount is in a container, and the helper may not either.
  bool isForHelper = !hasCapability(Capability::sysAdmin) && ::getuid() != 0;
  if (!isForHelper) {
    connection.reset(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
    if (!connection) {
      failed = deviceMissing(errno);
      return std::nullopt;
    }
    const int error = mountOn(attachment.folder.get(), request, owner, connection, attachment.mountId);
    if (error != 0) failed = mountRefused(request.mountpoint, error);
    // Capable in a namespace that may not mount here: as anybody else.
    isForHelper = error == EPERM && ::getuid() != 0;
    if (error != 0 && !isForHelper) return std::nullopt;
  }
  if (isForHelper && owner.mustOwnFolder) {
    failed = {link::MountFailure::unavailable, "cannot mount on " + request.mountpoint +
                                                   " for another user: bobbin-fuse needs CAP_SYS_ADMIN for that"};
    return std::nullopt;
  }
  if (isForHelper) {
    connection = mountThroughHelper(request, failed);
    attachment.mountId = 0;
    if (!connection) return std::nullopt;
  }
  const auto mounted = attachment.mountId == 0 ? newMount(before, attachment.folder.get(), request.source)
                                               : mountWithId(readMountTable(), attachment.mountId);
  if (!mounted) {
    // What lies on the folder was put there a moment ago, by us.
    if (attachment.mountId == 0 && unmountOn(attachment.folder.get(), true) == EPERM)
      unmountThroughHelper(pathOf(attachment.folder.get()), true);
    failed = {link::MountFailure::other, "the mount on " + request.mountpoint + " vanished at once"};
    return std::nullopt;
  }
  attachment.mountId = mounted->id;
  attachment.device = mounted->device;
  return attachment;
}

Detached detach(const Attachment& attachment, bool isLazy) {
  using link::UnmountOutcome;
  if (!attachment.folder) return {};
  std::optional<MountedAt> ours;
  std::vector<MountedAt> table;
  if (!isInPlace(attachment, ours, table)) {
    if (!ours) return {};
    return {UnmountOutcome::failed, "it was moved to " + ours->mountpoint + ": umount that"};
  }
  if (const auto over = mountOver(table, attachment.mountId)) {
    const bool isOnTop = over->mountpoint == ours->mountpoint;
    return {UnmountOutcome::covered, over->source + " (" + over->type + ") is mounted " +
                                         (isOnTop ? "on top of it" : "inside it, on " + over->mountpoint) +
                                         ": umount that first"};
  }
  int error = unmountOn(attachment.folder.get(), isLazy);
  if (error == EPERM) error = unmountThroughHelper(ours->mountpoint, isLazy);
  // EINVAL: nothing is mounted there any more.
  if (error == 0 || error == EINVAL) return {};
  return {error == EBUSY ? UnmountOutcome::busy : UnmountOutcome::failed, errorText(error)};
}

}  // namespace bobbin
