#include "link/system.hpp"

#include <fcntl.h>

#include <cstring>

namespace bobbin {

std::string errorText(int error) {
  char buffer[128];
  // The GNU variant: it may answer with a text of its own instead of the buffer.
  return std::string(strerror_r(error, buffer, sizeof buffer)) + " (errno " + std::to_string(error) + ")";
}

void setInherited(int fd, bool isInherited) { ::fcntl(fd, F_SETFD, isInherited ? 0 : FD_CLOEXEC); }

namespace {
std::string quoted(std::string_view text) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char character : text) {
    const auto byte = static_cast<unsigned char>(character);
    if (byte == '"' || byte == '\\') {
      out += '\\';
      out += character;
    } else if (byte < 0x20) {
      out += "\\u00";
      out += digits[byte >> 4U];
      out += digits[byte & 15U];
    } else {
      out += character;
    }
  }
  return out + "\"";
}
}  // namespace

std::string field(std::string_view name, std::string_view value) {
  return quoted(name) + ":" + quoted(value);
}

std::string field(std::string_view name, std::int64_t value) {
  return quoted(name) + ":" + std::to_string(value);
}

void log(Level level, std::string_view message, const std::string& fields) {
  const auto now = std::chrono::duration_cast<std::chrono::milliseconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  std::string line = "{\"level\":" + std::to_string(static_cast<int>(level)) +
                     ",\"time\":" + std::to_string(now) + ",\"pid\":" + std::to_string(::getpid()) +
                     ",\"program\":\"bobbin-fuse\"";
  if (!fields.empty()) line += "," + fields;
  line += ",\"msg\":" + quoted(message) + "}\n";
  // One write a line, so that lines of several processes do not mix. A log that is full or closed stops
  // nobody.
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line.data(), line.size());
}

}  // namespace bobbin
