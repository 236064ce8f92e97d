#include "session/mount_table.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cstdlib>

#include "link/system.hpp"

namespace bobbin {

namespace {

// Space, tab, newline and backslash are written as octal escapes.
std::string unescapeOctal(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); i++) {
    if (text[i] != '\\' || i + 3 >= text.size()) {
      out += text[i];
      continue;
    }
    out += static_cast<char>((text[i + 1] - '0') << 6 | (text[i + 2] - '0') << 3 | (text[i + 3] - '0'));
    i += 3;
  }
  return out;
}

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::size_t start = 0;
  for (std::size_t at; (at = text.find(separator, start)) != std::string::npos; start = at + 1)
    parts.push_back(text.substr(start, at - start));
  parts.push_back(text.substr(start));
  return parts;
}

std::string readWhole(const char* path) {
  std::string text;
  const Fd file(::open(path, O_RDONLY | O_CLOEXEC));
  char buffer[16384];
  for (ssize_t n; file && (n = ::read(file.get(), buffer, sizeof buffer)) > 0;)
    text.append(buffer, static_cast<std::size_t>(n));
  return text;
}

template <typename Wanted>
std::optional<MountedAt> findMount(const std::vector<MountedAt>& table, Wanted isWanted) {
  const auto found = std::find_if(table.begin(), table.end(), isWanted);
  if (found == table.end()) return std::nullopt;
  return *found;
}

}  // namespace

std::vector<MountedAt> readMountTable() {
  std::vector<MountedAt> table;
  for (const std::string& line : split(readWhole("/proc/self/mountinfo"), '\n')) {
    // 36 35 98:0 /root /mountpoint options [tags …] - type source superoptions
    const auto fields = split(line, ' ');
    if (fields.size() < 9) continue;
    const auto dash = std::find(fields.begin() + 6, fields.end(), "-");
    if (fields.end() - dash < 3) continue;
    table.push_back({.id = std::atoi(fields[0].c_str()),
                     .parent = std::atoi(fields[1].c_str()),
                     .device = fields[2],
                     .mountpoint = unescapeOctal(fields[4]),
                     .type = *(dash + 1),
                     .source = unescapeOctal(*(dash + 2))});
  }
  return table;
}

std::optional<MountedAt> mountWithId(const std::vector<MountedAt>& table, int id) {
  return findMount(table, [&](const MountedAt& mounted) { return mounted.id == id; });
}

std::optional<MountedAt> mountOver(const std::vector<MountedAt>& table, int id) {
  return findMount(table, [&](const MountedAt& mounted) { return mounted.parent == id; });
}

}  // namespace bobbin
