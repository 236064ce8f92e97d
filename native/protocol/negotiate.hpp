// What we agree on with the kernel at INIT. Pure.
#pragma once

#include <optional>
#include <string>

#include "protocol/messages.hpp"

namespace bobbin::fuse {

struct Wishes {
  bool passthrough = false;
  bool noOpen = false;
  bool resend = true;
};

// Kept for the connection's whole life: INIT is sent once.
struct Agreement {
  std::uint32_t minor = 0;
  // Of those that we asked for.
  std::uint64_t flags = 0;

  bool has(std::uint64_t flag) const { return (flags & flag) != 0; }
};

// Bytes of the largest READ that we ask the kernel for, and of READDIR's answers.
inline constexpr std::uint32_t READ_BYTES_MAX = 1U << 20;
inline constexpr std::uint32_t PAGE_BYTES_MIN = 4096;

// Answers INIT. Nothing: the kernel is too old, and `reason` says so.
std::optional<Agreement> negotiate(const InitIn& in, const Wishes& wishes, InitOut& out, std::string& reason);

}  // namespace bobbin::fuse
