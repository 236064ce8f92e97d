// One request of the kernel, taken apart with every length checked. Pure.
//
// The bytes come from the kernel, which we trust with the mount but not with our memory: what is too
// short, too long or not ended is refused, so that a kernel that sends what was not negotiated gets an
// error and nothing else.
#pragma once

#include <cstring>
#include <optional>
#include <span>
#include <string_view>

#include "protocol/messages.hpp"

namespace bobbin::fuse {

// Views into the buffer that was read; whoever parks a request copies the buffer.
class Request {
 public:
  // Nothing: the bytes are no request.
  static std::optional<Request> parse(std::span<const std::uint8_t> message);

  const RequestHeader& header() const { return header_; }
  Opcode opcode() const { return static_cast<Opcode>(header_.opcode); }
  // With its header, as it was read.
  std::span<const std::uint8_t> message() const { return message_; }
  // What follows the header.
  std::span<const std::uint8_t> body() const { return body_; }

  // The fixed part at the body's start. Nothing: it is too short.
  template <typename T>
  std::optional<T> fixed() const {
    if (body_.size() < sizeof(T)) return std::nullopt;
    T value;
    std::memcpy(&value, body_.data(), sizeof value);
    return value;
  }

  // A string that ends in NUL, `skip` bytes into the body. Nothing: there is no NUL.
  std::optional<std::string_view> text(std::size_t skip = 0) const;

  // INIT, whose length depends on the kernel's version; what is missing is 0.
  std::optional<InitIn> init() const;

 private:
  RequestHeader header_{};
  std::span<const std::uint8_t> message_;
  std::span<const std::uint8_t> body_;
};

}  // namespace bobbin::fuse
