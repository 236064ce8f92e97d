#include "link/channel.hpp"

#include <sys/socket.h>

namespace bobbin::link {

void Channel::attach(Fd socket) {
  const std::lock_guard lock(mutex_);
  socket_ = std::move(socket);
  pending_.clear();
  sent_ = 0;
  isOpen_ = false;
}

void Channel::detach() { attach(Fd()); }

void Channel::send(const Buffer& frame) {
  const std::lock_guard lock(mutex_);
  if (isOpen_) push(frame);
}

void Channel::greet(const Buffer& frame) {
  const std::lock_guard lock(mutex_);
  if (socket_) push(frame);
}

void Channel::push(const Buffer& frame) {
  std::span<const std::uint8_t> rest(frame);
  if (pending_.empty()) {
    const auto n = ::send(socket_.get(), rest.data(), rest.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n > 0) rest = rest.subspan(static_cast<std::size_t>(n));
  }
  pending_.insert(pending_.end(), rest.begin(), rest.end());
}

void Channel::flush() {
  const std::lock_guard lock(mutex_);
  while (sent_ < pending_.size()) {
    const auto n =
        ::send(socket_.get(), pending_.data() + sent_, pending_.size() - sent_, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    // Full again, or broken: the reading side notices that.
    if (n <= 0) break;
    sent_ += static_cast<std::size_t>(n);
  }
  if (sent_ < pending_.size()) return;
  pending_.clear();
  sent_ = 0;
}

bool Channel::receive(FrameReader& reader) {
  std::uint8_t buffer[65'536];
  for (;;) {
    const auto n = ::recv(socket_.get(), buffer, sizeof buffer, MSG_DONTWAIT);
    if (n > 0) {
      reader.append({buffer, static_cast<std::size_t>(n)});
      // One round at a time, so that a flood does not keep everything else waiting.
      if (static_cast<std::size_t>(n) < sizeof buffer) return true;
      continue;
    }
    if (n < 0 && errno == EINTR) continue;
    return n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
  }
}

std::size_t Channel::queued() const {
  const std::lock_guard lock(mutex_);
  return pending_.size() - sent_;
}

Buffer Channel::rest() const {
  const std::lock_guard lock(mutex_);
  return {pending_.begin() + static_cast<std::ptrdiff_t>(sent_), pending_.end()};
}

void Channel::queue(std::span<const std::uint8_t> bytes) {
  const std::lock_guard lock(mutex_);
  pending_.insert(pending_.end(), bytes.begin(), bytes.end());
}

}  // namespace bobbin::link
