// One answer to the kernel, in a buffer that a worker has.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "protocol/messages.hpp"

namespace bobbin {

// The answer to one request, written after room for its header.
class Reply {
 public:
  explicit Reply(std::span<std::uint8_t> buffer) : buffer_(buffer) {}

  template <typename T>
  void put(const T& value) {
    std::memcpy(grow(sizeof value), &value, sizeof value);
  }
  // Of nothing there is no address, which memcpy has to be given.
  void put(std::string_view bytes) {
    if (!bytes.empty()) std::memcpy(grow(bytes.size()), bytes.data(), bytes.size());
  }
  // Room for bytes that are written later.
  std::uint8_t* grow(std::size_t bytes) {
    std::uint8_t* at = buffer_.data() + bytes_;
    bytes_ += bytes;
    return at;
  }
  std::size_t room() const { return buffer_.size() - bytes_; }
  std::uint8_t* body() { return buffer_.data() + sizeof(fuse::ReplyHeader); }
  std::size_t bodyBytes() const { return bytes_ - sizeof(fuse::ReplyHeader); }
  void clear() { bytes_ = sizeof(fuse::ReplyHeader); }
  // The whole message, with its header filled in.
  std::span<const std::uint8_t> finish(std::uint64_t unique, int error);

 private:
  std::span<std::uint8_t> buffer_;
  std::size_t bytes_ = sizeof(fuse::ReplyHeader);
};

}  // namespace bobbin
