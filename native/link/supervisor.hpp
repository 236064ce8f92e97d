// The daemon as our child: started, and started again when it ends, with longer and longer pauses while
// it does not get as far as its hello.
//
// The command is started by its paths as they are named, so that after an upgrade it is what links lead to by then. A daemon
// that ends before it serves anybody may be an upgrade that is broken: then the next one is started by the paths that the
// last one was started by that did serve, where these are others and still there.
//
// It inherits our end of nothing but what it needs: the sockets that we hold for it, the cache's lock
// and its end of the link, each named by a variable of its environment.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "link/system.hpp"
#include "link/wire.hpp"

namespace bobbin::link {

struct Inherited {
  // BOBBIN_…_FD
  std::string variable;
  int fd = -1;
};

// Where the child has a user of its own.
struct ChildUser {
  // In the child, before its exec: becomes that user. False: it cannot. Must not allocate.
  std::function<bool()> become = [] { return true; };
  // Sends it a signal.
  std::function<void(pid_t, int)> kill = [](pid_t child, int number) { ::kill(child, number); };
};

// Owned by the server, on whose thread it is called.
class Supervisor {
 public:
  explicit Supervisor(std::vector<std::string> command, ChildUser user = {})
      : command_(std::move(command)), user_(std::move(user)) {}

  // 0 or an errno.
  int start(const std::vector<Inherited>& inherited);
  // One that was started beside the present one, and takes its place.
  void take(const Supervisor& successor);
  // What an earlier bobbin-fuse has started, and knew of it.
  void save(wire::Writer& out) const;
  void restore(wire::Reader& in);

  // Whether our child has ended; its exit code, or 128 and its signal.
  std::optional<int> reap();
  void greeted() { hasGreeted_ = true; }
  // It does what a daemon is for.
  void served();
  // The present one, or the one to be started next, is what worked last, because what lies at the paths does not.
  bool hasFallenBack() const { return hasFallenBack_; }
  // The files of the child that was started last, without links.
  std::string program() const;
  const std::vector<std::string>& command() const { return command_; }
  const ChildUser& user() const { return user_; }
  bool hasGreeted() const { return hasGreeted_; }
  bool hasEverGreeted() const { return hasEverGreeted_ || hasGreeted_; }
  void signal(int number) const;

  pid_t child() const { return child_; }
  // When the next one may be started.
  Clock::time_point nextStart() const { return nextStart_; }
  Clock::time_point startedAt() const { return startedAt_; }

 private:
  std::vector<std::string> command_;
  ChildUser user_;
  pid_t child_ = 0;
  bool hasGreeted_ = false;
  bool hasEverGreeted_ = false;
  bool hasServed_ = false;
  bool hasFallenBack_ = false;
  // The command of the child with the links of its files resolved, and that of the last child that served.
  std::vector<std::string> started_;
  std::vector<std::string> sound_;
  // In a row.
  unsigned failures_ = 0;
  Clock::time_point startedAt_;
  Clock::time_point nextStart_;
};

// How a process ended, in words.
std::string endText(int exitCode);

}  // namespace bobbin::link
