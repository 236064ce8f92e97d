#include "session/mountpoint.hpp"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#include <climits>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "session/mount_table.hpp"
#include "session/privileges.hpp"

namespace bobbin {

namespace {

constexpr int STEP_FLAGS = O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;

std::string procPath(const char* folder, int fd) {
  return "/proc/self/" + std::string(folder) + "/" + std::to_string(fd);
}

MountFailed refused(const std::string& path, const std::string& why) {
  return {link::MountFailure::mountpoint, "cannot mount on " + path + ": " + why};
}

// The names between a root and a mountpoint. False: the path has something that is no plain name.
bool splitNames(const std::string& relative, std::vector<std::string>& names) {
  for (std::size_t start = 0; start <= relative.size();) {
    const std::size_t end = std::min(relative.find('/', start), relative.size());
    const std::string name = relative.substr(start, end - start);
    if (name.empty() || name == "." || name == ".." || name.find('\0') != std::string::npos) return false;
    names.push_back(name);
    start = end + 1;
  }
  return true;
}

const MountRoot* rootOf(const std::string& path, const std::vector<MountRoot>& roots, std::string& relative) {
  for (const MountRoot& root : roots) {
    relative = pathBelow(root.path, path);
    // A root that was named by a link: the daemon asks by the path behind it.
    if (relative.empty()) relative = pathBelow(pathOf(root.folder.get()), path);
    if (!relative.empty()) return &root;
  }
  return nullptr;
}

std::string joined(const std::vector<MountRoot>& roots) {
  std::string text;
  for (const auto& root : roots) text += (text.empty() ? "" : ", ") + root.path;
  return text;
}

std::string stepFailed(int folder, const std::string& name, int error) {
  struct stat stats {};
  const bool isLink = error == ENOTDIR && ::fstatat(folder, name.c_str(), &stats, AT_SYMLINK_NOFOLLOW) == 0 &&
                      S_ISLNK(stats.st_mode);
  if (isLink) return name + " is a symbolic link, which may lead anywhere: give the path behind it";
  return name + ": " + errorText(error);
}

// Through a mount that a process serves, a step might never come back: one of ours, or, where others choose
// the path, anybody's.
bool mayHang(const std::string& type, bool isConfined) {
  return type == "fuse.bobbin" || (isConfined && type.starts_with("fuse"));
}

// What may be at the end of a walk: any mount; a folder that is not one; or also a mount that no process serves, such as a
// volume of a container, which may be looked at like a folder.
enum class End { mount, folderAlone, folderOrVolume };

// Not open: `why` says what is wrong.
Fd walk(int start, const std::vector<std::string>& names, bool isConfined, End end, std::string& why) {
  Fd held;
  int folder = start;
  int mountId = mountIdOf(start);
  for (const std::string& name : names) {
    Fd next = openStep(folder, name, why);
    if (!next) return Fd();
    if (const int id = mountIdOf(next.get()); id != mountId) {
      const auto mounted = mountWithId(readMountTable(), id);
      const std::string what = mounted ? mounted->source + ", " + mounted->type : "it cannot be told what";
      const bool isVolume = end == End::folderOrVolume && mounted && !mounted->type.starts_with("fuse");
      if (end != End::mount && &name == &names.back() && !isVolume) {
        why = "something is mounted there already (" + what + "): choose another folder";
        return Fd();
      }
      if (!mounted || mayHang(mounted->type, isConfined)) {
        why = "it lies inside another mount (" + what + "): choose a folder outside";
        return Fd();
      }
      mountId = id;
    }
    held = std::move(next);
    folder = held.get();
  }
  return held;
}

bool belongsTo(int folder, uid_t uid) {
  struct stat stats {};
  return ::fstat(folder, &stats) == 0 && stats.st_uid == uid;
}

// False: it is none that can be walked.
bool splitPath(const std::string& path, std::vector<std::string>& names) {
  return path.size() < PATH_MAX && path[0] == '/' && splitNames(path.substr(1), names);
}

constexpr const char* NOT_PLAIN = "it is not an absolute path without empty, . and .. parts";

}  // namespace

Fd openStep(int folder, const std::string& name, std::string& why) {
  Fd next(::openat(folder, name.c_str(), STEP_FLAGS));
  if (!next) why = stepFailed(folder, name, errno);
  return next;
}

int mountIdOf(int fd) {
  char text[1024];
  const Fd file(::open(procPath("fdinfo", fd).c_str(), O_RDONLY | O_CLOEXEC));
  const auto n = file ? ::read(file.get(), text, sizeof text - 1) : -1;
  text[n > 0 ? n : 0] = '\0';
  const char* at = std::strstr(text, "mnt_id:");
  return at == nullptr ? 0 : std::atoi(at + std::strlen("mnt_id:"));
}

std::string pathOf(int fd) {
  char path[PATH_MAX];
  const auto n = ::readlink(procPath("fd", fd).c_str(), path, sizeof path);
  return n > 0 ? std::string(path, static_cast<std::size_t>(n)) : "";
}

std::string pathBelow(const std::string& folder, const std::string& path) {
  return path.size() > folder.size() + 1 && path.starts_with(folder) && path[folder.size()] == '/'
             ? path.substr(folder.size() + 1)
             : "";
}

std::string openMountRoots(const std::vector<std::string>& paths, std::vector<MountRoot>& roots) {
  const CapabilityRaised raised(Capability::dacReadSearch);
  for (const std::string& path : paths) {
    Fd folder(::open(path.empty() ? "/" : path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    if (!folder) return "open " + path + " (--mount-below): " + errorText(errno) + "; make that folder first";
    roots.push_back({.path = path, .folder = std::move(folder)});
  }
  return "";
}

Fd openMountpoint(const std::string& path, const std::vector<MountRoot>& roots, std::optional<uid_t> owner,
                  MountFailed& failed) {
  std::vector<std::string> names;
  if (!splitPath(path, names)) {
    failed = refused(path.substr(0, PATH_MAX), NOT_PLAIN);
    return Fd();
  }
  // The folder may lie in one that only its owner may enter.
  const CapabilityRaised raised(Capability::dacReadSearch);
  std::string relative;
  const MountRoot* root = rootOf(path, roots, relative);
  if (!roots.empty() && root == nullptr) {
    failed = refused(path, "bobbin-fuse may mount below " + joined(roots) + " (--mount-below)");
    return Fd();
  }
  Fd top;
  if (root == nullptr) {
    top.reset(::open("/", STEP_FLAGS));
  } else {
    names.clear();
    splitNames(relative, names);
  }
  std::string why;
  const int start = root == nullptr ? top.get() : root->folder.get();
  // Where others than our own user ask, what lies under the mount must never be somebody's mount.
  const End end = roots.empty() && !owner ? End::folderOrVolume : End::folderAlone;
  Fd folder = walk(start, names, root != nullptr, end, why);
  if (!folder) failed = refused(path, why);
  if (owner && (!folder || !belongsTo(folder.get(), *owner))) {
    failed = refused(path, "it is not yours, not there, or lies behind a link or inside another mount: choose a "
                           "folder that you have made");
    return Fd();
  }
  if (folder && !checkMountpoint(folder.get(), path, failed)) folder.reset();
  return folder;
}

Fd openParent(const std::string& path, std::string& name, std::string& why) {
  std::vector<std::string> names;
  if (!splitPath(path, names)) {
    why = NOT_PLAIN;
    return Fd();
  }
  name = names.back();
  names.pop_back();
  Fd top(::open("/", STEP_FLAGS));
  return names.empty() ? std::move(top) : walk(top.get(), names, false, End::mount, why);
}

bool checkMountpoint(int folder, const std::string& path, MountFailed& failed) {
  struct Close {
    void operator()(DIR* stream) const { ::closedir(stream); }
  };
  const int reading = ::openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const std::unique_ptr<DIR, Close> stream(reading < 0 ? nullptr : ::fdopendir(reading));
  if (stream == nullptr) {
    failed = refused(path, "cannot look whether the folder is empty: " + errorText(errno));
    return false;
  }
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(stream.get());
    if (entry == nullptr && errno == 0) return true;
    if (entry == nullptr) {
      failed = refused(path, "cannot look whether the folder is empty: " + errorText(errno));
      return false;
    }
    if (std::strcmp(entry->d_name, ".") == 0 || std::strcmp(entry->d_name, "..") == 0) continue;
    failed = refused(path, "the folder is not empty, and a mount would hide what it holds: choose an empty one");
    return false;
  }
}

}  // namespace bobbin
