#include "session/mount_table.hpp"

#include <fcntl.h>
#include <linux/openat2.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>

#include "protocol/negotiate.hpp"
#include "session/privileges.hpp"

namespace bobbin {

namespace {

// Space, tab, newline and backslash are written as octal escapes.
std::string unescapeOctal(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); i++) {
    if (text[i] != '\\' || i + 3 >= text.size()) {
      out += text[i];
      continue;
    }
    out += static_cast<char>((text[i + 1] - '0') << 6 | (text[i + 2] - '0') << 3 | (text[i + 3] - '0'));
    i += 3;
  }
  return out;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::size_t start = 0;
  for (std::size_t at; (at = text.find(separator, start)) != std::string::npos; start = at + 1)
    parts.push_back(text.substr(start, at - start));
  parts.push_back(text.substr(start));
  return parts;
}

std::string readWhole(const char* path) {
  std::string text;
  const Fd file(::open(path, O_RDONLY | O_CLOEXEC));
  char buffer[16384];
  for (ssize_t n; file && (n = ::read(file.get(), buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<std::size_t>(n));
  return text;
}

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
  if (status != 0) {
    failed = {
        link::MountFailure::unavailable,
        "cannot mount on " + request.mountpoint +
            ": fusermount3 refused; --allow-other needs the line user_allow_other in /etc/fuse.conf, and the "
            "mountpoint has to be yours (" +
            said + ")"};
    return Fd();
  }
  Fd device = receiveDescriptor(ours.get());
  if (!device) failed = {link::MountFailure::unavailable, "fusermount3 handed no descriptor back: " + said};
  return device;
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

bool liesBelow(const std::string& path, const std::vector<std::string>& folders) {
  if (folders.empty()) return true;
  return std::any_of(folders.begin(), folders.end(),
                     [&](const std::string& folder) { return path.starts_with(folder + "/"); });
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const auto& word : words) text += (text.empty() ? "" : ", ") + word;
  return text;
}

// 0 or an errno. The path was resolved when it was asked for: a symbolic link in it was put there since.
int mountOn(const link::Mount& request, const std::string& options) {
  // The mountpoint may lie in a folder that only its owner may enter.
  const CapabilityRaised raised(Capability::dacReadSearch);
  struct open_how how {};
  how.flags = O_PATH | O_DIRECTORY | O_CLOEXEC;
  how.resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  const Fd folder(
      static_cast<int>(::syscall(SYS_openat2, AT_FDCWD, request.mountpoint.c_str(), &how, sizeof how)));
  // Before Linux 5.6 there is no openat2.
  if (!folder && errno != ENOSYS) return errno;
  const std::string target = folder ? "/proc/self/fd/" + std::to_string(folder.get()) : request.mountpoint;
  const int mounted = ::mount(request.source.c_str(), target.c_str(), "fuse.bobbin",
                              MS_RDONLY | MS_NOSUID | MS_NODEV, options.c_str());
  return mounted == 0 ? 0 : errno;
}

}  // namespace

std::vector<MountedAt> readMountTable() {
  std::vector<MountedAt> table;
  for (const std::string& line : split(readWhole("/proc/self/mountinfo"), '\n')) {
    // 36 35 98:0 /root /mountpoint options [tags …] - type source superoptions
    const auto fields = split(line, ' ');
    if (fields.size() < 9) continue;
    const auto dash = std::find(fields.begin() + 6, fields.end(), "-");
    if (fields.end() - dash < 3) continue;
    table.push_back({.id = std::atoi(fields[0].c_str()),
                     .device = fields[2],
                     .mountpoint = unescapeOctal(fields[4]),
                     .type = *(dash + 1),
                     .source = unescapeOctal(*(dash + 2))});
  }
  return table;
}

std::optional<MountedAt> mountAt(const std::vector<MountedAt>& table, const std::string& path) {
  const auto found = std::find_if(table.rbegin(), table.rend(),
                                  [&](const MountedAt& mounted) { return mounted.mountpoint == path; });
  if (found == table.rend()) return std::nullopt;
  return *found;
}

Fd mountFuse(const link::Mount& request, const std::vector<std::string>& below, MountFailed& failed) {
  if (!liesBelow(request.mountpoint, below)) {
    failed = {link::MountFailure::mountpoint, "cannot mount on " + request.mountpoint +
                                                  ": bobbin-fuse may mount below " + joined(below) +
                                                  " (--mount-below)"};
    return Fd();
  }
  // The helper is for users; root that may not mount is in a container, and the helper may not either.
  if (!hasCapability(Capability::sysAdmin) && ::getuid() != 0) return mountThroughHelper(request, failed);
  Fd device(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!device) {
    failed = deviceMissing(errno);
    return Fd();
  }
  const std::string options = "fd=" + std::to_string(device.get()) +
                              ",rootmode=40000,user_id=" + std::to_string(::getuid()) +
                              ",group_id=" + std::to_string(::getgid()) +
                              ",default_permissions,max_read=" + std::to_string(fuse::READ_BYTES_MAX) +
                              (request.allowOther ? ",allow_other" : "");
  const int error = mountOn(request, options);
  if (error == 0) return device;
  failed = mountRefused(request.mountpoint, error);
  // Capable in a namespace that may not mount here: as anybody else.
  if (error == EPERM && ::getuid() != 0) return mountThroughHelper(request, failed);
  return Fd();
}

int unmountPath(const std::string& mountpoint, bool isLazy) {
  {
    const CapabilityRaised raised(Capability::dacReadSearch);
    if (::umount2(mountpoint.c_str(), UMOUNT_NOFOLLOW | (isLazy ? MNT_DETACH : 0)) == 0) return 0;
  }
  const int error = errno;
  // EINVAL: nothing is mounted there (any more).
  if (error == EINVAL || error == ENOENT) return 0;
  if (error != EPERM) return error;
  std::string said;
  const int status = runFusermount({isLazy ? "-uz" : "-u", "--", mountpoint}, -1, said);
  if (status == 0) return 0;
  if (said.find("busy") != std::string::npos) return EBUSY;
  if (said.find("not found") != std::string::npos || said.find("not mounted") != std::string::npos) return 0;
  return EPERM;
}

}  // namespace bobbin
