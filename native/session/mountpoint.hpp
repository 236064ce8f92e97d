// Folders that mounts are made on: found step by step from a folder that is held open, and looked at by
// descriptor, so that nobody can put another in the place of the one that was looked at.
//
// A step takes one name, follows no link and never goes up. It notices where it crosses into another mount,
// before anything is asked of that mount: one that a process serves, ours among them, might not answer, and
// the caller is the thread that has to go on.
#pragma once

#include <sys/types.h>

#include <optional>
#include <string>
#include <vector>

#include "link/frames.hpp"
#include "link/system.hpp"

namespace bobbin {

struct MountFailed {
  link::MountFailure cause = link::MountFailure::other;
  std::string message;
};

// A folder that mountpoints may lie in (--mount-below), opened once.
struct MountRoot {
  std::string path;
  Fd folder;
};

// Empty, or what is wrong.
std::string openMountRoots(const std::vector<std::string>& paths, std::vector<MountRoot>& roots);

// Opens a folder (O_PATH) that something may be mounted on, below one of `roots`; without any, anywhere,
// since whoever asks may do it by itself. On failure, `failed` says what to do. `owner`: the folder has to be theirs,
// and they are told nothing of what is not, since we may look where they may not.
Fd openMountpoint(const std::string& path, const std::vector<MountRoot>& roots, std::optional<uid_t> owner,
                  MountFailed& failed);

// Opens (O_PATH) the folder that the last `name` of a path lies in, which may be mounted on. Not open: `why` says
// what is wrong.
Fd openParent(const std::string& path, std::string& name, std::string& why);
// One step from a folder: what lies on top at that name, and no link.
Fd openStep(int folder, const std::string& name, std::string& why);

// Whether a mount may hide the folder: it is empty. `path` is for the message.
bool checkMountpoint(int folder, const std::string& path, MountFailed& failed);

// The id of the mount that an open file lies in; 0: it cannot be told.
int mountIdOf(int fd);
// Where an open file lies now.
std::string pathOf(int fd);
// What follows a folder's path and a slash in `path`; empty: it does not lie below.
std::string pathBelow(const std::string& folder, const std::string& path);

}  // namespace bobbin
