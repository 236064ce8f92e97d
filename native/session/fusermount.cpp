#include "session/fusermount.hpp"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace bobbin {

namespace {

// A comma ends an option; a backslash keeps one.
std::string escaped(const std::string& text) {
  std::string out;
  for (const char character : text) {
    if (character == ',' || character == '\\') out += '\\';
    out += character;
  }
  return out;
}

// The descriptor that a helper sends over a socket.
Fd receiveDescriptor(int socket) {
  char byte = 0;
  iovec io{.iov_base = &byte, .iov_len = 1};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t n = 0;
  while ((n = ::recvmsg(socket, &message, MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR) {
  }
  const cmsghdr* header = n > 0 ? CMSG_FIRSTHDR(&message) : nullptr;
  if (header == nullptr || header->cmsg_type != SCM_RIGHTS) return Fd();
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(header), sizeof fd);
  return Fd(fd);
}

// Runs fusermount3, or fusermount where only that one is. Its exit code, 127 when neither is there, and
// what it said.
int runFusermount(const std::vector<std::string>& arguments, int socket, std::string& said) {
  int pipeEnds[2];
  if (::pipe2(pipeEnds, O_CLOEXEC) != 0) return 126;
  Fd readEnd(pipeEnds[0]);
  Fd writeEnd(pipeEnds[1]);
  const std::string descriptor = "_FUSE_COMMFD=" + std::to_string(socket);
  const std::string path =
      std::string("PATH=") + (::getenv("PATH") != nullptr ? ::getenv("PATH") : "/usr/bin:/bin");
  char* environment[] = {const_cast<char*>(descriptor.c_str()), const_cast<char*>(path.c_str()),
                         const_cast<char*>("LC_ALL=C"), nullptr};
  std::vector<char*> argv = {const_cast<char*>("fusermount3")};
  for (const auto& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  const pid_t child = ::fork();
  if (child < 0) return 126;
  if (child == 0) {
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    ::dup2(writeEnd.get(), STDERR_FILENO);
    ::dup2(writeEnd.get(), STDOUT_FILENO);
    if (socket >= 0) ::fcntl(socket, F_SETFD, 0);
    ::execvpe("fusermount3", argv.data(), environment);
    ::execvpe("fusermount", argv.data(), environment);
    ::_exit(127);
  }
  writeEnd.reset();
  char buffer[1024];
  for (ssize_t n; (n = ::read(readEnd.get(), buffer, sizeof buffer)) != 0;) {
    if (n < 0 && errno != EINTR) break;
    if (n > 0 && said.size() < 4096) said.append(buffer, static_cast<std::size_t>(n));
  }
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  while (!said.empty() && said.back() == '\n') said.pop_back();
  return WIFEXITED(status) ? WEXITSTATUS(status) : 126;
}

/** fusermount3's rule: a folder that its caller may write to and, where that is sticky, owns. */
bool mayMountOn(const std::string& path) {
  struct stat stats;
  if (::stat(path.c_str(), &stats) != 0 || ::access(path.c_str(), W_OK) != 0) return false;
  return (stats.st_mode & S_ISVTX) == 0 || stats.st_uid == ::getuid();
}

}  // namespace

Fd mountThroughHelper(const link::Mount& request, MountFailed& failed) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    failed = {link::MountFailure::other, "socketpair: " + errorText(errno)};
    return Fd();
  }
  Fd ours(ends[0]);
  Fd theirs(ends[1]);
  std::string options =
      "ro,nosuid,nodev,subtype=bobbin,default_permissions,fsname=" + escaped(request.source);
  if (request.allowOther) options += ",allow_other";
  std::string said;
  const int status = runFusermount({"-o", options, "--", request.mountpoint}, theirs.get(), said);
  theirs.reset();
  if (status == 127) {
    failed = {link::MountFailure::unavailable,
              "users other than root mount through the program fusermount3, which is missing: apt-get "
              "install fuse3"};
    return Fd();
  }
  if (status != 0 && !mayMountOn(request.mountpoint)) {
    failed = {link::MountFailure::mountpoint,
              "cannot mount on " + request.mountpoint + ": the folder belongs to somebody else; choose a "
              "folder of your own, or have root mount there"};
    return Fd();
  }
  if (status != 0) {
    failed = {
        link::MountFailure::unavailable,
        "cannot mount on " + request.mountpoint +
            ": fusermount3 refused; --allow-other needs the line user_allow_other in /etc/fuse.conf (" + said +
            ")"};
    return Fd();
  }
  Fd device = receiveDescriptor(ours.get());
  if (!device) failed = {link::MountFailure::unavailable, "fusermount3 handed no descriptor back: " + said};
  return device;
}

int unmountThroughHelper(const std::string& path, bool isLazy) {
  std::string said;
  if (runFusermount({isLazy ? "-uz" : "-u", "--", path}, -1, said) == 0) return 0;
  if (said.find("busy") != std::string::npos) return EBUSY;
  if (said.find("not found") != std::string::npos || said.find("not mounted") != std::string::npos) return 0;
  return EPERM;
}

}  // namespace bobbin
