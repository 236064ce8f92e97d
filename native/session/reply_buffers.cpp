#include "session/reply_buffers.hpp"

#include <sys/mman.h>

#include <new>

#include "protocol/messages.hpp"
#include "protocol/negotiate.hpp"

namespace bobbin {

namespace {
constexpr std::size_t BYTES = sizeof(fuse::ReplyHeader) + fuse::READ_BYTES_MAX;
}  // namespace

ReplyBuffers::~ReplyBuffers() {
  while (idleCount_ > 0) ::munmap(idle_[--idleCount_], BYTES);
}

std::span<std::uint8_t> ReplyBuffers::Borrowed::bytes() const {
  return {static_cast<std::uint8_t*>(memory_), BYTES};
}

void* ReplyBuffers::take() {
  {
    const std::lock_guard lock(mutex_);
    if (idleCount_ > 0) return idle_[--idleCount_];
  }
  // Not malloc, which keeps what is freed. Pages that no answer reaches are never there.
  void* memory = ::mmap(nullptr, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  return memory;
}

void ReplyBuffers::giveBack(void* memory) {
  {
    const std::lock_guard lock(mutex_);
    if (idleCount_ < IDLE_MAX) {
      idle_[idleCount_++] = memory;
      return;
    }
  }
  ::munmap(memory, BYTES);
}

}  // namespace bobbin
