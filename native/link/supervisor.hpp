// The daemon as our child: started, and started again when it ends, with longer and longer pauses while
// it does not get as far as its hello.
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
  // Of one that an earlier bobbin-fuse has started.
  void adopt(pid_t child, bool hasGreeted);

  // Whether our child has ended; its exit code, or 128 and its signal.
  std::optional<int> reap();
  void greeted() { hasGreeted_ = true; }
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
  // In a row.
  unsigned failures_ = 0;
  Clock::time_point startedAt_;
  Clock::time_point nextStart_;
};

}  // namespace bobbin::link
