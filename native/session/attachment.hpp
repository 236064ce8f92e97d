// A connection at its mountpoint: putting it there, and taking it away.
//
// Root, and whoever has CAP_SYS_ADMIN in a user namespace with a mount namespace of its own, mounts by system
// calls; everybody else through the program fusermount3, which hands /dev/fuse back.
//
// The folder under a mount is held open as long as the mount is there. That makes nothing busy, and it is the
// way back to the mount: unmounting goes through the descriptor, whatever paths lead where by then, and only
// after the mount on it was seen to be ours by its id.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "link/frames.hpp"
#include "link/system.hpp"
#include "session/mountpoint.hpp"

namespace bobbin {

// Whose a mount is: who may enter it where others may not.
struct MountOwner {
  uid_t uid = 0;
  gid_t gid = 0;
  // The folder that is mounted on has to be theirs.
  bool mustOwnFolder = false;
};

// Owned by a mount; used by the server's thread.
struct Attachment {
  // What lies under the mount (O_PATH). Not open: the mount has left.
  Fd folder;
  // The mount as the mount table has it.
  int mountId = 0;
  std::string device;
};

// Opens the mountpoint and /dev/fuse, and mounts. Nothing: `failed` says what to do, and nothing is mounted.
std::optional<Attachment> attach(const link::Mount& request, const MountOwner& owner,
                                 const std::vector<MountRoot>& roots, Fd& connection, MountFailed& failed);

struct Detached {
  link::UnmountOutcome outcome = link::UnmountOutcome::done;
  std::string message;
};

// Unmounts; where it is no longer mounted, that is done. What is not ours stays: a mount that somebody has
// put on ours, or into it, is never taken along. `isLazy` detaches it now, and its files last until they are
// closed.
Detached detach(const Attachment& attachment, bool isLazy);

}  // namespace bobbin
