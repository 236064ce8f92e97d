// What was opened and read in one mount, in order, until the daemon says that it is in the log: a daemon
// that dies takes nothing of it with it.
//
// Accesses are numbered from the mount's first; those that were lost count, too, and a record of kind
// `lost` stands for as many as it says. So the daemon, which knows how many its log has, takes what is sent
// twice once.
//
// Owned by its mount. Any thread may add; the rest is the server's.
#pragma once

#include <mutex>
#include <vector>

#include "link/frames.hpp"

namespace bobbin {

class AccessQueue {
 public:
  // More than that wait for nobody: they are lost, and counted.
  static constexpr std::size_t RECORDS_MAX = 1U << 17U;

  void add(const link::Access& access);

  struct Batch {
    // Accesses before these.
    std::uint64_t first = 0;
    std::vector<link::Access> records;
  };
  // What was not sent yet.
  Batch take();
  // The log has so many accesses now.
  void logged(std::uint64_t count);
  // There is another daemon: what is not in the log is sent once more.
  void sendAgain();
  // Of a mount that an earlier process had: only the log knows how many accesses there were, and the last of
  // them may be missing. Until it says so, nothing is sent.
  void continueLog();

  // For the next bobbin-fuse.
  link::Buffer save() const;
  bool restore(std::span<const std::uint8_t> saved);

 private:
  static std::uint64_t countOf(const link::Access& record);

  mutable std::mutex mutex_;
  // Not in the log as far as we know; the first `sent_` of them were sent.
  std::vector<link::Access> records_;
  std::size_t sent_ = 0;
  // The numbers of records_[0] and of records_[sent_].
  std::uint64_t first_ = 0;
  std::uint64_t next_ = 0;
  bool isContinued_ = false;
};

}  // namespace bobbin
