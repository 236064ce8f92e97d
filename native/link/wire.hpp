// Little-endian fields, written and read one after the other: of frames, and of what one bobbin-fuse
// leaves to the next. Pure.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

namespace bobbin::wire {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "the formats are little-endian, and so must be the machine");

class Writer {
 public:
  template <typename T>
  Writer& number(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    const auto at = bytes_.size();
    bytes_.resize(at + sizeof value);
    std::memcpy(bytes_.data() + at, &value, sizeof value);
    return *this;
  }
  Writer& raw(std::span<const std::uint8_t> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  Writer& text(const std::string& text) {
    number(static_cast<std::uint32_t>(text.size()));
    return raw({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
  }
  std::vector<std::uint8_t>& bytes() { return bytes_; }

 private:
  std::vector<std::uint8_t> bytes_;
};

// After the first field that is not there, everything reads as empty and `isWhole()` is false.
class Reader {
 public:
  explicit Reader(std::span<const std::uint8_t> bytes) : rest_(bytes) {}

  template <typename T>
  T number() {
    T value{};
    const auto bytes = raw(sizeof value);
    if (bytes.size() == sizeof value) std::memcpy(&value, bytes.data(), sizeof value);
    return value;
  }
  std::span<const std::uint8_t> raw(std::size_t count) {
    if (count > rest_.size()) {
      isBroken_ = true;
      rest_ = {};
      return {};
    }
    const auto taken = rest_.first(count);
    rest_ = rest_.subspan(count);
    return taken;
  }
  std::string text() {
    const auto bytes = raw(number<std::uint32_t>());
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  // How many items of a size there can be, for a count that was sent: never more than the bytes there are.
  std::size_t count(std::size_t itemBytes) {
    const std::size_t items = number<std::uint32_t>();
    if (items > rest_.size() / itemBytes) {
      isBroken_ = true;
      return 0;
    }
    return items;
  }
  // Everything was there.
  bool isWhole() const { return !isBroken_; }
  // And nothing is left.
  bool isDone() const { return !isBroken_ && rest_.empty(); }

 private:
  std::span<const std::uint8_t> rest_;
  bool isBroken_ = false;
};

}  // namespace bobbin::wire
