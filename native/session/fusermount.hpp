// The program fusermount3, by which users other than root mount and unmount. It is root's, takes paths, and
// does for a user only what that user may do: on folders that the user may write to, to mounts that are the
// user's own.
#pragma once

#include <string>

#include "link/frames.hpp"
#include "link/system.hpp"
#include "session/mountpoint.hpp"

namespace bobbin {

// The connection of the new mount. On failure, `failed` says what to do.
Fd mountThroughHelper(const link::Mount& request, MountFailed& failed);

// 0 or an errno; 0 also where nothing is mounted any more.
int unmountThroughHelper(const std::string& path, bool isLazy);

}  // namespace bobbin
