#include "session/callers.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

namespace bobbin {

namespace {
using std::chrono::seconds;

constexpr std::size_t CALLERS_MAX = 64;
// So that one of them leaves room for the others.
constexpr std::ptrdiff_t CALLERS_PER_USER_MAX = 8;
constexpr seconds LINE_MAX{10};
// The daemon may have to fetch and compile a manifest first.
constexpr seconds ANSWER_MAX{120};
}  // namespace

void Callers::accept(int listener, const std::function<bool(int, std::uint64_t)>& watch) {
  for (;;) {
    Fd connection(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!connection) return;
    ucred who{};
    socklen_t bytes = sizeof who;
    if (::getsockopt(connection.get(), SOL_SOCKET, SO_PEERCRED, &who, &bytes) != 0) continue;
    const auto ofSame = std::count_if(callers_.begin(), callers_.end(),
                                      [&](const auto& item) { return item.second.uid == who.uid; });
    // An end of the connection says: try again.
    if (callers_.size() >= CALLERS_MAX || ofSame >= CALLERS_PER_USER_MAX) continue;
    const std::uint64_t number = ++last_;
    if (!watch(connection.get(), number)) continue;
    callers_[number] = Caller{.connection = std::move(connection),
                              .uid = who.uid,
                              .gid = who.gid,
                              .deadline = Clock::now() + LINE_MAX,
                              .line = {},
                              .isAsked = false};
  }
}

bool Callers::receive(std::uint64_t number) {
  const auto found = callers_.find(number);
  if (found == callers_.end()) return false;
  Caller& caller = found->second;
  char bytes[4096];
  for (;;) {
    const auto n = ::recv(caller.connection.get(), bytes, sizeof bytes, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) return false;
    // It has hung up, or says more than one line: it wants nothing from us any more.
    if (n <= 0 || caller.isAsked || caller.line.size() + static_cast<std::size_t>(n) > LINE_BYTES_MAX) {
      hangUp(found);
      return false;
    }
    caller.line.append(bytes, static_cast<std::size_t>(n));
    if (caller.line.find('\n') == std::string::npos) continue;
    if (caller.line.find('\n') != caller.line.size() - 1 || caller.line.find('\0') != std::string::npos) {
      hangUp(found);
      return false;
    }
    caller.line.pop_back();
    caller.isAsked = true;
    caller.deadline = Clock::now() + ANSWER_MAX;
    return true;
  }
}

const Caller* Callers::find(std::uint64_t number) const {
  const auto found = callers_.find(number);
  const bool isWaiting = found != callers_.end() && found->second.isAsked && found->second.connection;
  return isWaiting ? &found->second : nullptr;
}

void Callers::answer(std::uint64_t number, const std::string& line) {
  const auto found = callers_.find(number);
  if (found == callers_.end()) return;
  if (!found->second.connection) {
    callers_.erase(found);
    return;
  }
  // It fits into the socket's buffer, which is empty. Whoever gets less notices the missing end.
  const std::string whole = line + "\n";
  [[maybe_unused]] const auto sent =
      ::send(found->second.connection.get(), whole.data(), whole.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
  callers_.erase(found);
}

void Callers::sweep(Clock::time_point now) {
  for (auto at = callers_.begin(); at != callers_.end();) {
    const auto caller = at++;
    if (now > caller->second.deadline) hangUp(caller);
  }
}

void Callers::hangUp(std::map<std::uint64_t, Caller>::iterator caller) {
  if (caller->second.isAsked)
    caller->second.connection.reset();
  else
    callers_.erase(caller);
}

}  // namespace bobbin
