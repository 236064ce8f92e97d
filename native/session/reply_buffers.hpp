// Room for answers: as much as the largest read, for as many as are answered at the same time, over all mounts.
//
// A thread that waits for its next request has none. So what idle mounts cost does not depend on how many
// threads they have; and what was needed for a moment goes back to the system, but for a few.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>

namespace bobbin {

// Owned by the server; any thread may borrow.
class ReplyBuffers {
 public:
  ~ReplyBuffers();

  // Given back when this ends.
  class Borrowed {
   public:
    explicit Borrowed(ReplyBuffers& from) : from_(from), memory_(from.take()) {}
    ~Borrowed() { from_.giveBack(memory_); }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;
    std::span<std::uint8_t> bytes() const;

   private:
    ReplyBuffers& from_;
    void* memory_;
  };

 private:
  // Throws std::bad_alloc.
  void* take();
  void giveBack(void* memory);

  // As many as one busy mount uses by default.
  static constexpr std::size_t IDLE_MAX = 8;

  std::mutex mutex_;
  // The one that was used last is used next: it is in the processor's cache.
  std::array<void*, IDLE_MAX> idle_{};
  std::size_t idleCount_ = 0;
};

}  // namespace bobbin
