// A daemon that replaces the one that runs: it is started beside it, and takes its place once it has said hello.
#include "session/server.hpp"

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <array>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "session/privileges.hpp"
#include "session/reload.hpp"
#include "session/server_events.hpp"

namespace bobbin {

namespace {

// What a process that was just started has said at its end of the link.
enum class Greeting { none, ours, other };
Greeting greetingAt(int link) {
  std::array<std::uint8_t, link::FRAME_HEADER_BYTES + sizeof(std::uint32_t)> bytes{};
  const auto n = ::recv(link, bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
  if (n < static_cast<ssize_t>(bytes.size())) return Greeting::none;
  std::uint16_t kind = 0;
  std::uint32_t version = 0;
  std::memcpy(&kind, bytes.data() + sizeof(std::uint32_t), sizeof kind);
  std::memcpy(&version, bytes.data() + link::FRAME_HEADER_BYTES, sizeof version);
  return kind == 1 && version == link::VERSION ? Greeting::ours : Greeting::other;
}

}  // namespace

void Server::renewDaemon() {
  const char* asker = ::getenv(RELOAD_VARIABLE);
  if (asker == nullptr) return;
  reloadAsker_ = std::atoi(asker);
  ::unsetenv(RELOAD_VARIABLE);
  // None: the one that is started now is new.
  if (supervisor_.child() == 0 || exitCode_) return;
  successor_.emplace(Successor{link::Supervisor(supervisor_.command(), supervisor_.user()), Fd(), false});
  if (const int error = startProcess(successor_->process, successor_->link); error != 0)
    return giveUpSuccessor("cannot be started: " + errorText(error));
  add(epoll_.get(), successor_->link.get(), EPOLLIN | EPOLLRDHUP | EPOLLET, Event::successor);
}

// The old daemon is told to end when its successor has said hello. The successor waits meanwhile for ours.
void Server::onSuccessor() {
  if (!successor_) return;
  if (const auto exitCode = successor_->process.reap()) return giveUpSuccessor(link::endText(*exitCode));
  if (!successor_->hasGreeted) {
    switch (greetingAt(successor_->link.get())) {
      case Greeting::none:
        if (Clock::now() - successor_->process.startedAt() > GREETING_MAX) giveUpSuccessor("did not say hello in time");
        return;
      case Greeting::other:
        return giveUpSuccessor("speaks another version of the link");
      case Greeting::ours:
        successor_->hasGreeted = true;
        ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, successor_->link.get(), nullptr);
    }
  }
  if (supervisor_.child() == 0) return promoteSuccessor();
  if (renewed_ != 0) return;
  renewed_ = supervisor_.child();
  killAt_ = Clock::now() + END_MAX;
  supervisor_.signal(SIGTERM);
}

void Server::promoteSuccessor() {
  supervisor_.take(successor_->process);
  Fd link = std::move(successor_->link);
  successor_.reset();
  attachDaemon(std::move(link));
}

void Server::giveUpSuccessor(const std::string& why) {
  notReplaced_ = "the new daemon " + successor_->process.program() + " " + why + ": look at the log";
  if (supervisor_.child() != 0 && renewed_ == 0) notReplaced_ += "; process " + std::to_string(supervisor_.child()) + " goes on";
  log(Level::error, "the new daemon does not start", field("program", successor_->process.program()) + "," + field("error", why));
  endSuccessor();
  endReload(notReplaced_);
  if (supervisor_.child() == 0 && Clock::now() >= supervisor_.nextStart()) startDaemon();
}

void Server::endSuccessor() {
  if (!successor_) return;
  if (const pid_t child = successor_->process.child(); child != 0) {
    successor_->process.signal(SIGKILL);
    ::waitpid(child, nullptr, 0);
  }
  successor_.reset();
}

void Server::endReload(const std::string& problem) {
  const int asker = std::exchange(reloadAsker_, 0);
  if (asker == 0) return;
  const ActingAs owner(options_.daemonUser);
  answerReload(options_.cache, asker, problem);
}

}  // namespace bobbin
