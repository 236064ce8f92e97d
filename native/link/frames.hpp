// The frames of the link (frames.md). Bytes in, values out; no system call. bobbin-fuse is the
// privileged side: whatever the daemon sends is compared with its length before it is used.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "link/system.hpp"

namespace bobbin::link {

inline constexpr std::uint32_t VERSION = 5;
inline constexpr std::size_t FRAME_HEADER_BYTES = 8;
inline constexpr std::uint32_t PAYLOAD_BYTES_MAX = 4U << 20;
// A variable of an environment may have 128 KiB, with its name.
inline constexpr std::size_t KEPT_BYTES_MAX = 96U << 10;

using Buffer = std::vector<std::uint8_t>;

enum class OpenMode : std::uint8_t { automatic = 0, cached = 1, passthrough = 2, none = 3 };

// What an object's file is named by: the folder of its hash type, and 32 bytes.
struct ObjectName {
  std::uint8_t type = 0;
  std::array<std::uint8_t, 32> bytes{};
  bool operator==(const ObjectName&) const = default;
};

// What an object's file looked like when its bytes were checked.
struct Stamp {
  std::uint64_t inode = 0;
  std::uint64_t size = 0;
  std::int64_t mtimeNs = 0;
  std::int64_t ctimeNs = 0;
  bool operator==(const Stamp&) const = default;
};

struct Object {
  ObjectName name;
  Stamp stamp;
};

// In a mount's umask: modes have write bits, for an overlay that stands on the mount and asks them who may write. The mount
// itself refuses to be written to, whatever its modes say.
constexpr std::uint32_t SHOWS_WRITE_BITS = 01000;

// From the daemon.
struct Hello {
  std::uint32_t version = 0;
  std::uint32_t pid = 0;
  std::string program;
};
struct Ready {
  std::uint64_t request = 0;
  Object object;
};
struct Failed {
  std::uint64_t request = 0;
  std::uint32_t error = 0;
};
struct Working {
  std::vector<std::uint64_t> requests;
};
struct Known {
  std::vector<Object> objects;
};
struct EvictAsk {
  std::uint64_t request = 0;
  std::vector<ObjectName> names;
};
struct Mount {
  std::uint64_t request = 0;
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  // Mode bits to take away, and SHOWS_WRITE_BITS.
  std::uint32_t umask = 0;
  bool allowOther = false;
  OpenMode openMode = OpenMode::automatic;
  bool listAttributes = false;
  std::int64_t timeNs = 0;
  std::string mountpoint;
  std::string source;
  std::string index;
  std::string manifest;
  std::string registry;
  std::string package;
  std::optional<std::string> message;
  // Nothing to us; the next daemon gets it back.
  std::string note;
  // The number of the caller who asked for it and whose it will be (`asked`); 0: the owner of the cache.
  std::uint64_t caller = 0;
};
struct Unmount {
  std::uint64_t request = 0;
  std::uint32_t mount = 0;
  bool isForced = false;
};
struct Index {
  std::uint32_t mount = 0;
  std::string index;
  std::string manifest;
};
struct Stop {};
struct StatsAsk {
  std::uint64_t request = 0;
};
struct Logged {
  std::uint32_t mount = 0;
  // Accesses that the mount's log has, lost ones included.
  std::uint64_t count = 0;
};

struct Answer {
  std::uint64_t caller = 0;
  std::string line;
};
// It has come so far that callers are answered.
struct Serving {};

// Nothing to us; the next daemon gets it back, in its environment.
struct Keep {
  std::string text;
};

using FromDaemon =
    std::variant<Hello, Ready, Failed, Working, Known, EvictAsk, Mount, Unmount, Index, Stop, StatsAsk,
                 Logged, Answer, Serving, Keep>;

// Nothing: it is no frame of ours.
std::optional<FromDaemon> decode(std::uint16_t kind, std::span<const std::uint8_t> payload);

// One line of text, for tests and logs.
std::string describe(const FromDaemon& frame);

// To the daemon.
struct MountFacts {
  std::uint32_t mount = 0;
  OpenMode openMode = OpenMode::cached;
  std::string reason;
  std::string note;
};
enum class EvictOutcome : std::uint8_t { gone = 0, open = 1, used = 2 };
enum class AccessKind : std::uint32_t { lost = 0, open = 1, firstRead = 2 };
struct Access {
  std::uint64_t timeNs = 0;
  std::uint32_t ino = 0;
  AccessKind kind = AccessKind::open;
  // Of `lost`: how many are missing here.
  std::uint64_t bytes = 0;
};
enum class MountFailure : std::uint8_t { unavailable = 1, mountpoint = 2, other = 3 };
enum class UnmountOutcome : std::uint8_t { done = 0, busy = 1, failed = 2, covered = 3 };

struct Stats {
  // Opens (without opens: first reads) that needed no daemon.
  std::uint64_t hits = 0;
  std::uint64_t waiting = 0;
  std::uint64_t openObjects = 0;
  std::uint64_t openBytes = 0;
  std::uint64_t backingIds = 0;
  std::uint64_t knownObjects = 0;
  // Mounts that the service manager could not keep: they would end with bobbin-fuse.
  std::uint64_t unkeptMounts = 0;
  // Since bobbin-fuse was started, also before it was replaced in place.
  std::uint64_t daemonsStarted = 0;
  std::string version;
  // Why the daemon is another one than lies at its paths; empty: it is that one.
  std::string notReplaced;
  std::vector<LoggedLine> said;
};

// Each returns a whole frame, with its header.
Buffer hello(std::uint32_t pid, const std::string& program);
Buffer mounts(std::span<const MountFacts> mounts);
Buffer ensure(std::uint64_t request, std::uint32_t mount, std::uint32_t ino);
Buffer cancel(std::uint64_t request);
Buffer evictDone(std::uint64_t request, std::span<const EvictOutcome> outcomes);
Buffer access(std::uint32_t mount, std::uint64_t first, std::span<const Access> records);
Buffer mounted(std::uint64_t request, std::uint32_t mount, OpenMode openMode, const std::string& reason);
Buffer mountFailed(std::uint64_t request, MountFailure cause, const std::string& message);
Buffer unmountDone(std::uint64_t request, UnmountOutcome outcome, const std::string& message);
Buffer closed(std::uint32_t mount);
Buffer ended(std::uint32_t mount);
Buffer indexDamaged(std::uint32_t mount, const std::string& reason);
Buffer stats(std::uint64_t request, const Stats& stats);
Buffer asked(std::uint64_t caller, std::uint32_t uid, std::uint32_t gid, const std::string& line);

// Cuts a stream into frames. Owned by whoever reads the socket.
class FrameReader {
 public:
  void append(std::span<const std::uint8_t> bytes) {
    pending_.insert(pending_.end(), bytes.begin(), bytes.end());
  }
  struct Frame {
    std::uint16_t kind = 0;
    Buffer payload;
  };
  // The next whole frame. Nothing: more bytes are needed, or `isBroken()`.
  std::optional<Frame> next();
  bool isBroken() const { return isBroken_; }
  // What has come of a frame that is not whole.
  std::span<const std::uint8_t> rest() const { return std::span(pending_).subspan(start_); }

 private:
  Buffer pending_;
  std::size_t start_ = 0;
  bool isBroken_ = false;
};

}  // namespace bobbin::link
