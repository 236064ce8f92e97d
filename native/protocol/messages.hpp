// The messages of /dev/fuse, as the kernel lays them out (linux/fuse.h, protocol 7.31 to 7.45): what a
// read-only filesystem needs of them. Our own copy, because the headers of a distribution are often
// older than its kernel, and what is missing there can be negotiated all the same.
//
// Pure: sizes and offsets, no system call.
#pragma once

#include <cstdint>

namespace bobbin::fuse {

inline constexpr std::uint32_t MAJOR = 7;
// What we speak; the kernel may speak more or less.
inline constexpr std::uint32_t MINOR = 45;
// Linux 5.4. Before it, reads of 1 MiB and directories without OPENDIR are not there.
inline constexpr std::uint32_t MINOR_MIN = 31;
inline constexpr std::uint64_t ROOT_NODE = 1;
// The kernel refuses to fill a smaller buffer.
inline constexpr std::uint32_t REQUEST_BYTES_MIN = 8192;

enum class Opcode : std::uint32_t {
  lookup = 1,
  forget = 2,
  getattr = 3,
  setattr = 4,
  readlink = 5,
  symlink = 6,
  mknod = 8,
  mkdir = 9,
  unlink = 10,
  rmdir = 11,
  rename = 12,
  link = 13,
  open = 14,
  read = 15,
  write = 16,
  statfs = 17,
  release = 18,
  fsync = 20,
  setxattr = 21,
  getxattr = 22,
  listxattr = 23,
  removexattr = 24,
  flush = 25,
  init = 26,
  opendir = 27,
  readdir = 28,
  releasedir = 29,
  fsyncdir = 30,
  access = 34,
  create = 35,
  interrupt = 36,
  destroy = 38,
  ioctl = 39,
  batchForget = 42,
  fallocate = 43,
  readdirplus = 44,
  rename2 = 45,
  lseek = 46,
  copyFileRange = 47,
  tmpfile = 51,
  statx = 52,
};

// Bits of INIT: the low half goes into `flags`, the high half into `flags2`.
namespace init {
inline constexpr std::uint64_t ASYNC_READ = 1ULL << 0;
// The kernel may look "." and ".." up, by the node id of a file handle.
inline constexpr std::uint64_t EXPORT_SUPPORT = 1ULL << 4;
inline constexpr std::uint64_t DO_READDIRPLUS = 1ULL << 13;
inline constexpr std::uint64_t NO_OPEN_SUPPORT = 1ULL << 17;
inline constexpr std::uint64_t PARALLEL_DIROPS = 1ULL << 18;
inline constexpr std::uint64_t MAX_PAGES = 1ULL << 22;
inline constexpr std::uint64_t NO_OPENDIR_SUPPORT = 1ULL << 24;
inline constexpr std::uint64_t INIT_EXT = 1ULL << 30;
inline constexpr std::uint64_t PASSTHROUGH = 1ULL << 37;
inline constexpr std::uint64_t HAS_RESEND = 1ULL << 39;
inline constexpr std::uint64_t ALLOW_IDMAP = 1ULL << 40;
}  // namespace init

namespace open_flag {
inline constexpr std::uint32_t KEEP_CACHE = 1U << 1;
inline constexpr std::uint32_t NOFLUSH = 1U << 5;
inline constexpr std::uint32_t PASSTHROUGH = 1U << 7;
}  // namespace open_flag

// Set in the `unique` of a request that the kernel sends again.
inline constexpr std::uint64_t UNIQUE_RESENT = 1ULL << 63;
// In the place of an error, in a message whose `unique` is 0.
inline constexpr std::int32_t NOTIFY_RESEND = 7;

struct RequestHeader {
  std::uint32_t len;
  std::uint32_t opcode;
  std::uint64_t unique;
  std::uint64_t nodeid;
  std::uint32_t uid;
  std::uint32_t gid;
  // The thread that asks, as our pid namespace numbers it.
  std::uint32_t pid;
  std::uint16_t extensionWords;
  std::uint16_t padding;
};
static_assert(sizeof(RequestHeader) == 40);

struct ReplyHeader {
  std::uint32_t len;
  // 0 or a negative errno.
  std::int32_t error;
  std::uint64_t unique;
};
static_assert(sizeof(ReplyHeader) == 16);

struct InitIn {
  std::uint32_t major;
  std::uint32_t minor;
  std::uint32_t maxReadahead;
  std::uint32_t flags;
  std::uint32_t flags2;
  std::uint32_t unused[11];
};
static_assert(sizeof(InitIn) == 64);
// Before flags2 there was (protocol 7.36), it ended here.
inline constexpr std::uint32_t INIT_IN_BYTES_MIN = 16;

struct InitOut {
  std::uint32_t major;
  std::uint32_t minor;
  std::uint32_t maxReadahead;
  std::uint32_t flags;
  std::uint16_t maxBackground;
  std::uint16_t congestionThreshold;
  std::uint32_t maxWrite;
  std::uint32_t timeGranularity;
  std::uint16_t maxPages;
  std::uint16_t mapAlignment;
  std::uint32_t flags2;
  std::uint32_t maxStackDepth;
  std::uint16_t requestTimeout;
  std::uint16_t unused[11];
};
static_assert(sizeof(InitOut) == 64);

struct Attr {
  std::uint64_t ino;
  std::uint64_t size;
  // Of 512 bytes.
  std::uint64_t blocks;
  std::uint64_t atime;
  std::uint64_t mtime;
  std::uint64_t ctime;
  std::uint32_t atimeNs;
  std::uint32_t mtimeNs;
  std::uint32_t ctimeNs;
  std::uint32_t mode;
  std::uint32_t nlink;
  std::uint32_t uid;
  std::uint32_t gid;
  std::uint32_t rdev;
  std::uint32_t blockBytes;
  std::uint32_t flags;
};
static_assert(sizeof(Attr) == 88);

struct EntryOut {
  // 0: there is no such name.
  std::uint64_t nodeid;
  std::uint64_t generation;
  // Seconds for which the kernel may keep the name, and the attributes.
  std::uint64_t entryValid;
  std::uint64_t attrValid;
  std::uint32_t entryValidNs;
  std::uint32_t attrValidNs;
  Attr attr;
};
static_assert(sizeof(EntryOut) == 128);

struct AttrOut {
  std::uint64_t attrValid;
  std::uint32_t attrValidNs;
  std::uint32_t padding;
  Attr attr;
};
static_assert(sizeof(AttrOut) == 104);

struct StatxTime {
  std::int64_t seconds;
  std::uint32_t nanoseconds;
  std::int32_t reserved;
};

struct StatxIn {
  std::uint32_t getattrFlags;
  std::uint32_t reserved;
  std::uint64_t fh;
  std::uint32_t statxFlags;
  std::uint32_t statxMask;
};
static_assert(sizeof(StatxIn) == 24);

struct StatxOut {
  std::uint64_t attrValid;
  std::uint32_t attrValidNs;
  std::uint32_t flags;
  std::uint64_t spare[2];
  // From here on as statx(2).
  std::uint32_t mask;
  std::uint32_t blockBytes;
  std::uint64_t attributes;
  std::uint32_t nlink;
  std::uint32_t uid;
  std::uint32_t gid;
  std::uint16_t mode;
  std::uint16_t spare0;
  std::uint64_t ino;
  std::uint64_t size;
  std::uint64_t blocks;
  std::uint64_t attributesMask;
  StatxTime atime;
  StatxTime btime;
  StatxTime ctime;
  StatxTime mtime;
  std::uint32_t rdevMajor;
  std::uint32_t rdevMinor;
  std::uint32_t devMajor;
  std::uint32_t devMinor;
  std::uint64_t spare2[14];
};
static_assert(sizeof(StatxOut) == 288);
// STATX_BASIC_STATS
inline constexpr std::uint32_t STATX_BASIC = 0x7ff;

struct OpenIn {
  std::uint32_t flags;
  std::uint32_t openFlags;
};
static_assert(sizeof(OpenIn) == 8);

struct OpenOut {
  std::uint64_t fh;
  std::uint32_t openFlags;
  std::int32_t backingId;
};
static_assert(sizeof(OpenOut) == 16);

// READ, READDIR and READDIRPLUS.
struct ReadIn {
  std::uint64_t fh;
  std::uint64_t offset;
  std::uint32_t size;
  std::uint32_t readFlags;
  std::uint64_t lockOwner;
  std::uint32_t flags;
  std::uint32_t padding;
};
static_assert(sizeof(ReadIn) == 40);

struct AccessIn {
  std::uint32_t mask;
  std::uint32_t padding;
};
static_assert(sizeof(AccessIn) == 8);

// The name follows, with its NUL; LISTXATTR has none.
struct GetxattrIn {
  std::uint32_t size;
  std::uint32_t padding;
};
static_assert(sizeof(GetxattrIn) == 8);

struct GetxattrOut {
  std::uint32_t size;
  std::uint32_t padding;
};
static_assert(sizeof(GetxattrOut) == 8);

struct LseekIn {
  std::uint64_t fh;
  std::uint64_t offset;
  std::uint32_t whence;
  std::uint32_t padding;
};
static_assert(sizeof(LseekIn) == 24);

struct LseekOut {
  std::uint64_t offset;
};

struct InterruptIn {
  std::uint64_t unique;
};

struct StatfsOut {
  std::uint64_t blocks;
  std::uint64_t blocksFree;
  std::uint64_t blocksAvailable;
  std::uint64_t files;
  std::uint64_t filesFree;
  std::uint32_t blockBytes;
  std::uint32_t nameBytesMax;
  std::uint32_t fragmentBytes;
  std::uint32_t padding;
  std::uint32_t spare[6];
};
static_assert(sizeof(StatfsOut) == 80);

// The name follows, padded with zeros to 8 bytes.
struct Dirent {
  std::uint64_t ino;
  // Of the entry after this one.
  std::uint64_t offset;
  std::uint32_t nameBytes;
  // DT_*
  std::uint32_t type;
};
static_assert(sizeof(Dirent) == 24);

// FUSE_DEV_IOC_BACKING_OPEN
struct BackingMap {
  std::int32_t fd;
  std::uint32_t flags;
  std::uint64_t padding;
};
static_assert(sizeof(BackingMap) == 16);

// _IOR(229, 0, uint32_t), _IOW(229, 1, struct fuse_backing_map), _IOW(229, 2, uint32_t): the same numbers
// on every architecture that we build for.
inline constexpr unsigned long IOCTL_CLONE = 0x8004e500;
inline constexpr unsigned long IOCTL_BACKING_OPEN = 0x4010e501;
inline constexpr unsigned long IOCTL_BACKING_CLOSE = 0x4004e502;

}  // namespace bobbin::fuse
