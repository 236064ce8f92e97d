#include "link/service_manager.hpp"

#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace bobbin::link {

namespace {
constexpr int FIRST_FD = 3;
}

ServiceManager::ServiceManager() {
  const char* address = ::getenv("NOTIFY_SOCKET");
  if (address != nullptr && (address[0] == '/' || address[0] == '@')) address_ = address;
  if (const char* max = ::getenv("FDSTORE"); max != nullptr && *max >= '0' && *max <= '9')
    keptMax_ = static_cast<std::uint32_t>(std::strtoul(max, nullptr, 10));
}

void ServiceManager::sendMessage(const std::string& state, int fd) const {
  if (address_.empty()) return;
  sockaddr_un to{};
  to.sun_family = AF_UNIX;
  if (address_.size() >= sizeof to.sun_path) return;
  std::memcpy(to.sun_path, address_.data(), address_.size());
  // An abstract name begins with a NUL, which is written as @.
  if (address_[0] == '@') to.sun_path[0] = '\0';
  const Fd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  iovec io{.iov_base = const_cast<char*>(state.data()), .iov_len = state.size()};
  msghdr message{};
  message.msg_name = &to;
  message.msg_namelen = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + address_.size());
  message.msg_iov = &io;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  if (::sendmsg(socket.get(), &message, MSG_NOSIGNAL) < 0)
    log(Level::warn, "the service manager cannot be told", field("error", errorText(errno)));
}

void ServiceManager::notify(const std::string& state) const { sendMessage(state, -1); }

bool ServiceManager::store(const std::vector<std::pair<std::string, int>>& descriptors) {
  const auto count = static_cast<std::uint32_t>(descriptors.size());
  if (keptMax_ && kept_ + count > *keptMax_) return false;
  // FDPOLL=0: systemd would drop a descriptor of /dev/fuse when it polls as hung up.
  for (const auto& [name, fd] : descriptors) sendMessage("FDSTORE=1\nFDPOLL=0\nFDNAME=" + name, fd);
  kept_ += count;
  return true;
}

void ServiceManager::remove(const std::vector<std::string>& names) {
  for (const auto& name : names) sendMessage("FDSTOREREMOVE=1\nFDNAME=" + name, -1);
  kept_ -= std::min(kept_, static_cast<std::uint32_t>(names.size()));
}

std::map<std::string, Fd> ServiceManager::stored() {
  std::map<std::string, Fd> found;
  const char* pid = ::getenv("LISTEN_PID");
  const char* count = ::getenv("LISTEN_FDS");
  const char* names = ::getenv("LISTEN_FDNAMES");
  if (pid == nullptr || count == nullptr || names == nullptr || std::atoi(pid) != ::getpid()) return found;
  std::string rest = names;
  for (int fd = FIRST_FD; fd < FIRST_FD + std::atoi(count); fd++) {
    const auto colon = rest.find(':');
    setInherited(fd, false);
    found[rest.substr(0, colon)] = Fd(fd);
    rest = colon == std::string::npos ? "" : rest.substr(colon + 1);
  }
  kept_ = static_cast<std::uint32_t>(found.size());
  ::unsetenv("LISTEN_PID");
  ::unsetenv("LISTEN_FDS");
  ::unsetenv("LISTEN_FDNAMES");
  return found;
}

}  // namespace bobbin::link
