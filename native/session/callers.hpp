// Users other than the owner who may mount on folders of their own (--mounts-for-group). Their door is held here and
// nowhere else: the kernel says who has connected (SO_PEERCRED), and the daemon cannot say otherwise.
//
// A caller sends one line and gets one line back; the daemon answers it. Callers are few, a line is short, and all of
// them have deadlines, so whoever says nothing or reads nothing holds up nobody. Whoever hangs up after asking counts
// until the daemon has answered: else a user who asks and hangs up, in a loop, would have it do any amount of work.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "link/system.hpp"

namespace bobbin {

struct Caller {
  // Not open: it has hung up, and the daemon has not answered yet.
  Fd connection;
  uid_t uid = 0;
  gid_t gid = 0;
  Clock::time_point deadline;
  std::string line;
  // The line is whole and the daemon has it.
  bool isAsked = false;
};

// Owned by the server, on whose thread it is called.
class Callers {
 public:
  static constexpr std::size_t LINE_BYTES_MAX = 64U << 10U;

  // Takes whoever waits at `listener`. Each new caller is handed to `watch`, with its number.
  void accept(int listener, const std::function<bool(int, std::uint64_t)>& watch);
  // Something came from a caller. True: its line is whole now.
  bool receive(std::uint64_t number);
  // One that waits for its answer; nullptr: it has gone.
  const Caller* find(std::uint64_t number) const;
  void answer(std::uint64_t number, const std::string& line);
  void sweep(Clock::time_point now);
  // The daemon that would have answered has gone.
  void drop() { callers_.clear(); }

 private:
  void hangUp(std::map<std::uint64_t, Caller>::iterator caller);

  std::map<std::uint64_t, Caller> callers_;
  std::uint64_t last_ = 0;
};

}  // namespace bobbin
