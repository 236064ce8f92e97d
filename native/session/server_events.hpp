// What the server's one loop waits for.
#pragma once

#include <sys/epoll.h>

#include <cstdint>

namespace bobbin {

enum class Event : std::uint64_t { signals, timer, wake, mountTable, link, mountsDoor, successor };

// A caller's events are its number and that.
inline constexpr std::uint64_t CALLERS = 1ULL << 32U;

inline bool add(int epoll, int fd, std::uint32_t events, Event event) {
  epoll_event item{};
  item.events = events;
  item.data.u64 = static_cast<std::uint64_t>(event);
  return ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &item) == 0;
}

}  // namespace bobbin
