#include "session/doors.hpp"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>

namespace bobbin {

namespace {

struct Door {
  const char* variable;
  const char* fact;
  const char* infix;
  mode_t mode;
};

// As daemon/control/doors.ts has them.
constexpr Door DOORS[] = {{"BOBBIN_CONTROL_FD", "socketPath", "", 0600},
                          {"BOBBIN_LEASES_FD", "leasesPath", ".leases", 0660},
                          {"BOBBIN_STATUS_FD", "statusPath", ".status", 0660},
                          {"", "mountsPath", ".mounts", 0660}};
constexpr std::string_view SUFFIX = ".sock";

// Whatever else lies there is a file of whoever named the path.
bool isSocket(const std::string& path) {
  struct stat stats {};
  return ::lstat(path.c_str(), &stats) == 0 && S_ISSOCK(stats.st_mode);
}

std::string listenOn(const std::string& path, mode_t mode, Fd& listener) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return "the path of a socket is over " + std::to_string(sizeof address.sun_path - 1) +
           " bytes: " + path + " (--socket names a shorter one)";
  std::memcpy(address.sun_path, path.data(), path.size());
  listener.reset(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  // Whoever holds the cache's lock is the only one to listen here.
  if (isSocket(path)) ::unlink(path.c_str());
  // The file is never wider than it will be, not even for a moment.
  const mode_t umask = ::umask(0177);
  const bool isBound =
      listener && ::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  const int error = errno;
  ::umask(umask);
  errno = error;
  if (!isBound && error == EADDRINUSE)
    return "listen on " + path + ": it is there, and is not a socket (--socket names another one)";
  if (!isBound || ::chmod(path.c_str(), mode) != 0 || ::listen(listener.get(), SOMAXCONN) != 0)
    return "listen on " + path + ": " + errorText(errno);
  return "";
}

}  // namespace

Doors::Doors(std::string controlPath, bool isForMounts) : count_(isForMounts ? ALL : MOUNTS) {
  std::string stem = controlPath;
  if (stem.ends_with(SUFFIX)) stem.resize(stem.size() - SUFFIX.size());
  paths_[0] = std::move(controlPath);
  for (std::size_t i = 1; i < ALL; i++) paths_[i] = stem + DOORS[i].infix + std::string(SUFFIX);
}

std::string Doors::listen() {
  for (std::size_t i = 0; i < count_; i++) {
    if (std::string problem = listenOn(paths_[i], DOORS[i].mode, listeners_[i]); !problem.empty())
      return problem;
  }
  return "";
}

void Doors::remove() const {
  for (const std::string& path : paths_) {
    if (isSocket(path)) ::unlink(path.c_str());
  }
}

std::string Doors::facts() const {
  std::string facts;
  for (std::size_t i = 0; i < count_; i++) facts += (i == 0 ? "" : ",") + field(DOORS[i].fact, paths_[i]);
  return facts;
}

std::vector<link::Inherited> Doors::inherited() const {
  std::vector<link::Inherited> inherited;
  for (std::size_t i = 0; i < MOUNTS; i++) inherited.push_back({DOORS[i].variable, listeners_[i].get()});
  return inherited;
}

std::vector<int> Doors::descriptors() const {
  std::vector<int> descriptors;
  for (const Fd& listener : listeners_) {
    if (listener) descriptors.push_back(listener.get());
  }
  return descriptors;
}

void Doors::save(wire::Writer& out) const {
  for (const Fd& listener : listeners_) out.number(listener.get());
}

void Doors::restore(wire::Reader& in) {
  for (Fd& listener : listeners_) {
    listener.reset(in.number<int>());
    if (listener) setInherited(listener.get(), false);
  }
}

}  // namespace bobbin
