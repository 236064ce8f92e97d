// What every part of the session uses of the system: descriptors that close themselves, clocks, the log.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace bobbin {

// Owns a descriptor.
class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) reset(std::exchange(other.fd_, -1));
    return *this;
  }
  Fd(const Fd&) = delete;
  Fd& operator=(const Fd&) = delete;
  ~Fd() { reset(); }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int release() { return std::exchange(fd_, -1); }
  void reset(int fd = -1) {
    if (fd_ >= 0) ::close(fd_);
    fd_ = fd;
  }

 private:
  int fd_ = -1;
};

using Clock = std::chrono::steady_clock;

// "No such file or directory (errno 2)"
std::string errorText(int error);

// Whether a descriptor stays open over execve.
void setInherited(int fd, bool isInherited);

// JSON lines on stderr, as the daemon writes them; where stderr is the journal, with the number that tells it how severe
// each is. `fields` is JSON without its braces, or empty. A minute has at most LINES_PER_MINUTE warnings and errors, and
// the next minute's first says how many were left out.
enum class Level { info = 30, warn = 40, error = 50 };
void log(Level level, std::string_view message, const std::string& fields = "");
// `"name":"value"`, escaped.
std::string field(std::string_view name, std::string_view value);
std::string field(std::string_view name, std::int64_t value);


// A warning or an error that was logged.
struct LoggedLine {
  // Since 1970.
  std::int64_t timeMs = 0;
  Level level = Level::error;
  std::string message;
  // JSON without its braces.
  std::string fields;
};

// The last few of them, the latest last, for people who ask what went wrong and do not have the log at hand. One that
// repeats takes the place of what it repeats.
std::vector<LoggedLine> lastLines();
// Those of before this program was replaced in place.
void rememberLines(std::vector<LoggedLine> lines);

// How many lines a minute has had. Owned by the log, under its lock.
class LineBudget {
 public:
  static constexpr unsigned LINES_PER_MINUTE = 256;
  // False: the line is left out.
  bool take(Clock::time_point now);
  // Those that were left out in minutes that are over by `now`; asking forgets them.
  unsigned takeLeftOut(Clock::time_point now);

 private:
  Clock::time_point began_;
  unsigned lines_ = 0;
  unsigned leftOut_ = 0;
};

// For calls whose failure changes nothing.
inline void ignoreResult(long) {}

}  // namespace bobbin
