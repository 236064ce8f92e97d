// Requests that wait for something that only the daemon can do: bring an object, or make an index again.
//
// A request waits here as the bytes that the kernel sent, and is handled again from the beginning when
// the daemon has answered. Readers of one entry share one question. Every wait ends: with the answer,
// with an interrupt, or with its deadline, whether a daemon lives or not.
//
// Owned by the server; any thread may call it, it has its own lock. Nothing is called under that lock.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "link/frames.hpp"
#include "link/system.hpp"

namespace bobbin {

// One request of the kernel, kept.
struct ParkedRequest {
  std::uint32_t mount = 0;
  // Which of the mount's descriptors it was read from, and must be answered on.
  std::uint32_t channel = 0;
  // How often it has waited before.
  std::uint32_t attempts = 0;
  link::Buffer message;
  bool isInterrupted = false;

  std::uint64_t unique() const;
  std::uint32_t pid() const;
};

class ParkedMisses {
 public:
  // How long a miss waits without a sign of progress.
  explicit ParkedMisses(Clock::duration patience) : patience_(patience) {}

  // A question for the daemon; 0 as `ino`: for an index.
  struct Question {
    std::uint64_t request = 0;
    std::uint32_t mount = 0;
    std::uint32_t ino = 0;
  };

  // Waits for an entry's object. Returns the question, when nobody has asked it yet.
  std::optional<Question> park(std::uint32_t ino, ParkedRequest request);

  struct Answered {
    Question question;
    std::vector<ParkedRequest> requests;
  };
  // Takes a question away. Nothing: it was cancelled, or never asked.
  std::optional<Answered> answer(std::uint64_t request);
  // Those that wait for the index of a mount.
  std::vector<ParkedRequest> answerIndex(std::uint32_t mount);

  // A mount's reader was interrupted.
  enum class Interrupt { unknown, waits, gone };
  struct Interrupted {
    Interrupt outcome = Interrupt::unknown;
    ParkedRequest request;
    // Nobody waits for it any more.
    std::optional<std::uint64_t> cancelled;
  };
  // `gone`: taken out, for the caller to answer with EINTR. `waits`: the signal does not end the reader.
  Interrupted interrupt(std::uint32_t mount, std::uint64_t unique);

  void progress(const std::vector<std::uint64_t>& requests);

  struct Swept {
    std::vector<ParkedRequest> expired;
    // Of readers that were killed after a signal that did not end them.
    std::vector<ParkedRequest> killed;
    std::vector<std::uint64_t> cancelled;
  };
  // What is over by now.
  Swept sweep(Clock::time_point now);

  // All questions, to ask the next daemon; indexes among them, with `ino` 0.
  std::vector<Question> questions() const;
  // A mount has ended: nobody can be answered.
  std::vector<std::uint64_t> drop(std::uint32_t mount);

  std::size_t waiting() const;
  bool isEmpty() const { return waiting() == 0; }

  link::Buffer save() const;
  bool restore(std::span<const std::uint8_t> saved);

 private:
  struct Miss {
    Question question;
    std::vector<ParkedRequest> requests;
    Clock::time_point deadline;
  };
  Miss* find(std::uint32_t mount, std::uint32_t ino);
  Miss& add(std::uint32_t mount, std::uint32_t ino);

  const Clock::duration patience_;
  mutable std::mutex mutex_;
  std::uint64_t lastRequest_ = 0;
  std::map<std::uint64_t, Miss> misses_;
  std::unordered_map<std::uint64_t, std::uint64_t> requestOf_;
};

// Whether a signal that would end the thread, or one that people and time-outs send, waits for it.
// Others (SIGCHLD, SIGURG, SIGPROF, …) must not turn a read of a file into EINTR, which few programs expect.
bool isBeingEnded(std::uint32_t pid);

}  // namespace bobbin
