#include "session/cache_room.hpp"

#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <string>

namespace bobbin {

namespace {
// Four numbers of at most 20 digits, and their names.
constexpr std::size_t LIMITS_BYTES_MAX = 256;
constexpr int NUMBERS = 4;
// What a sum may have; no disk has more.
constexpr std::uint64_t BYTES_MAX = 1ULL << 62U;

std::uint64_t lessOrZero(std::uint64_t from, std::uint64_t what) { return from > what ? from - what : 0; }
}  // namespace

std::uint64_t roomBytes(std::string_view limits, std::uint64_t diskFreeBytes) {
  std::uint64_t quota = 0;
  std::uint64_t floor = 0;
  std::uint64_t objects = 0;
  std::uint64_t others = 0;
  const std::string text(limits);
  const int found = std::sscanf(text.c_str(),
                                "{\"limitBytes\":%" SCNu64 ",\"freeBytesMin\":%" SCNu64 ",\"objectBytes\":%" SCNu64
                                ",\"otherBytes\":%" SCNu64 "}",
                                &quota, &floor, &objects, &others);
  if (found != NUMBERS || std::max({quota, floor, objects, others, diskFreeBytes}) > BYTES_MAX) return 0;
  // Objects give way to others, so what they take counts as free.
  return std::min(lessOrZero(quota, others), lessOrZero(diskFreeBytes + objects, floor));
}

std::uint64_t roomBytesOf(const CacheFolder& cache) {
  int error = 0;
  const Fd file = cache.openFile(cache.path() + "/limits.json", error);
  if (!file) return 0;
  std::array<char, LIMITS_BYTES_MAX> text{};
  const ssize_t bytes = ::read(file.get(), text.data(), text.size());
  struct statvfs disk {};
  if (bytes <= 0 || ::fstatvfs(file.get(), &disk) != 0) return 0;
  return roomBytes(std::string_view(text.data(), static_cast<std::size_t>(bytes)),
                   std::uint64_t{disk.f_bavail} * disk.f_frsize);
}

}  // namespace bobbin
