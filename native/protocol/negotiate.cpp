#include "protocol/negotiate.hpp"

#include <algorithm>

namespace bobbin::fuse {

namespace {
// Requests in the background (readahead, RELEASE) which the kernel keeps under way. To it, those that are parked are under way, too:
// with 64, the readers of one object that hangs stopped all other reads that were not in the page cache. So it is the most
// that the field can say. The kernel bounds what the parked ones pin by the readahead of each open file.
constexpr std::uint16_t BACKGROUND_MAX = 65'535;
constexpr std::uint16_t CONGESTION_AT = 65'535;
// Nothing is ever written; the kernel wants a number.
constexpr std::uint32_t WRITE_BYTES_MAX = 4096;
}  // namespace

std::optional<Agreement> negotiate(const InitIn& in, const Wishes& wishes, InitOut& out,
                                   std::string& reason) {
  if (in.major != MAJOR || in.minor < MINOR_MIN) {
    reason = "this kernel speaks FUSE " + std::to_string(in.major) + "." + std::to_string(in.minor) +
             ", and bobbin-fuse needs 7.31 (Linux 5.4) or newer";
    return std::nullopt;
  }
  const std::uint64_t offered =
      in.flags | ((in.flags & init::INIT_EXT) != 0 ? std::uint64_t{in.flags2} << 32U : 0);
  std::uint64_t wanted = init::ASYNC_READ | init::DO_READDIRPLUS | init::PARALLEL_DIROPS | init::MAX_PAGES |
                         init::NO_OPENDIR_SUPPORT | init::INIT_EXT | init::ALLOW_IDMAP | init::EXPORT_SUPPORT;
  if (wishes.passthrough) wanted |= init::PASSTHROUGH;
  if (wishes.noOpen) wanted |= init::NO_OPEN_SUPPORT;
  if (wishes.resend) wanted |= init::HAS_RESEND;

  const Agreement agreement{.minor = std::min(in.minor, MINOR), .flags = offered & wanted};
  out = {};
  out.major = MAJOR;
  out.minor = agreement.minor;
  out.maxReadahead = READ_BYTES_MAX;
  out.flags = static_cast<std::uint32_t>(agreement.flags);
  out.flags2 = static_cast<std::uint32_t>(agreement.flags >> 32U);
  out.maxBackground = BACKGROUND_MAX;
  out.congestionThreshold = CONGESTION_AT;
  out.maxWrite = WRITE_BYTES_MAX;
  out.timeGranularity = 1;
  out.maxPages = static_cast<std::uint16_t>(READ_BYTES_MAX / PAGE_BYTES_MIN);
  // Object files lie on an ordinary filesystem. Overlayfs may still stand on top of us (two is the limit).
  out.maxStackDepth = agreement.has(init::PASSTHROUGH) ? 1 : 0;
  return agreement;
}

}  // namespace bobbin::fuse
