#include "link/system.hpp"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

namespace bobbin {

std::string errorText(int error) {
  char buffer[128];
  // The GNU variant: it may answer with a text of its own instead of the buffer.
  return std::string(strerror_r(error, buffer, sizeof buffer)) + " (errno " + std::to_string(error) + ")";
}

void setInherited(int fd, bool isInherited) { ::fcntl(fd, F_SETFD, isInherited ? 0 : FD_CLOEXEC); }

namespace {
// What a terminal obeys or shows otherwise, beyond C0: the same as daemon/model/terminal.ts has.
bool isTerminalControl(unsigned code) {
  return (code >= 0x7f && code <= 0x9f) || code == 0x061c || code == 0x200e || code == 0x200f ||
         (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069);
}

// The character that `text` begins with, where it has two or three bytes of UTF-8, as all of those have; else
// its first byte.
struct Character {
  unsigned code;
  std::size_t bytes;
};
Character characterAt(std::string_view text) {
  const auto byte = [&](std::size_t i) -> unsigned { return static_cast<unsigned char>(text[i]); };
  const auto continues = [&](std::size_t i) { return i < text.size() && (byte(i) & 0xc0U) == 0x80U; };
  if ((byte(0) & 0xe0U) == 0xc0U && continues(1)) return {(byte(0) & 0x1fU) << 6U | (byte(1) & 0x3fU), 2};
  if ((byte(0) & 0xf0U) == 0xe0U && continues(1) && continues(2))
    return {(byte(0) & 0x0fU) << 12U | (byte(1) & 0x3fU) << 6U | (byte(2) & 0x3fU), 3};
  return {byte(0), 1};
}

// JSON text that does nothing on a terminal: names in it may be a stranger's.
std::string quoted(std::string_view text) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string out = "\"";
  while (!text.empty()) {
    const auto [code, bytes] = characterAt(text);
    if (code == '"' || code == '\\') {
      out += '\\';
      out += static_cast<char>(code);
    } else if (code < 0x20 || ((bytes > 1 || code == 0x7f) && isTerminalControl(code))) {
      out += "\\u";
      for (const unsigned shift : {12U, 8U, 4U, 0U}) out += digits[code >> shift & 15U];
    } else {
      out += text.substr(0, bytes);
    }
    text.remove_prefix(bytes);
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

bool LineBudget::take(Clock::time_point now) {
  if (now - began_ >= std::chrono::minutes{1}) {
    began_ = now;
    lines_ = 0;
  }
  if (lines_ < LINES_PER_MINUTE) {
    lines_++;
    return true;
  }
  leftOut_++;
  return false;
}

unsigned LineBudget::takeLeftOut(Clock::time_point now) {
  return now - began_ >= std::chrono::minutes{1} ? std::exchange(leftOut_, 0) : 0;
}

namespace {
// syslog's number for a level; nothing where stderr is not the journal, as daemon/control/journal.ts has it.
std::string journalPrefix(Level level) {
  static const bool isJournal = [] {
    const char* named = std::getenv("JOURNAL_STREAM");
    struct stat stats {};
    return named != nullptr && ::fstat(STDERR_FILENO, &stats) == 0 &&
           std::to_string(stats.st_dev) + ":" + std::to_string(stats.st_ino) == named;
  }();
  if (!isJournal) return "";
  return level == Level::error ? "<3>" : level == Level::warn ? "<4>" : "<6>";
}

std::int64_t timeNowMs() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::system_clock::now().time_since_epoch())
      .count();
}

void write(Level level, std::string_view message, const std::string& fields) {
  const auto now = timeNowMs();
  std::string line = journalPrefix(level) + "{\"level\":" + std::to_string(static_cast<int>(level)) +
                     ",\"time\":" + std::to_string(now) + ",\"pid\":" + std::to_string(::getpid()) +
                     ",\"program\":\"bobbin-fuse\"";
  if (!fields.empty()) line += "," + fields;
  line += ",\"msg\":" + quoted(message) + "}\n";
  // One write a line, so that lines of several processes do not mix. A log that is full or closed stops
  // nobody.
  [[maybe_unused]] const auto written = ::write(STDERR_FILENO, line.data(), line.size());
}
}  // namespace

namespace {
// As many as the daemon remembers of its own (daemon/model/last-errors.ts).
constexpr std::size_t REMEMBERED_MAX = 10;
// Paths are at most 4096 bytes; a line with more is remembered without its fields.
constexpr std::size_t FIELDS_BYTES_MAX = 16'384;

struct Remembered {
  std::mutex mutex;
  LineBudget budget;
  std::vector<LoggedLine> lines;
};

Remembered& remembered() {
  static Remembered all;
  return all;
}

void remember(std::vector<LoggedLine>& lines, LoggedLine line) {
  if (line.fields.size() > FIELDS_BYTES_MAX) line.fields.clear();
  std::erase_if(lines, [&](const LoggedLine& earlier) {
    return earlier.message == line.message && earlier.fields == line.fields;
  });
  lines.push_back(std::move(line));
  if (lines.size() > REMEMBERED_MAX) lines.erase(lines.begin());
}
}  // namespace

std::vector<LoggedLine> lastLines() {
  const std::lock_guard lock(remembered().mutex);
  return remembered().lines;
}

void rememberLines(std::vector<LoggedLine> lines) {
  const std::lock_guard lock(remembered().mutex);
  for (auto& line : lines) remember(remembered().lines, std::move(line));
}

void log(Level level, std::string_view message, const std::string& fields) {
  if (level != Level::info) {
    auto& [mutex, budget, lines] = remembered();
    const std::lock_guard lock(mutex);
    remember(lines, {.timeMs = timeNowMs(), .level = level, .message = std::string(message), .fields = fields});
    const auto now = Clock::now();
    const unsigned leftOut = budget.takeLeftOut(now);
    if (leftOut > 0) write(Level::warn, "warnings and errors were left out", field("count", std::int64_t{leftOut}));
    if (!budget.take(now)) return;
  }
  write(level, message, fields);
}

}  // namespace bobbin
