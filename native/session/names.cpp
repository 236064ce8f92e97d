#include "session/names.hpp"

#include <dirent.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

namespace bobbin {

namespace {

// A year: what is under a top hash never changes, so the kernel may keep it.
constexpr std::uint64_t FOR_EVER = 365ULL * 24 * 3600;
constexpr std::uint32_t FILE_MODE = S_IFREG | 0444;
constexpr std::uint32_t DIRECTORY_MODE = S_IFDIR | 0555;
constexpr std::uint32_t WRITE_BITS = 0222;
constexpr std::uint64_t DIRECTORY_BYTES = 4096;
// What programs take as the size of their buffers.
constexpr std::uint32_t BLOCK_BYTES = 131'072;
constexpr std::uint32_t STATFS_BLOCK_BYTES = 4096;
constexpr std::uint32_t NAME_BYTES_MAX = 255;
// XATTR_SIZE_MAX of Linux.
constexpr std::size_t ATTRIBUTE_BYTES_MAX = 65'536;
constexpr std::string_view ATTRIBUTE_PREFIX = "user.quilt.";
constexpr std::array<std::string_view, 5> FILE_ATTRIBUTES = {"hash", "hash_type", "physical_key", "cached", "verified"};
constexpr std::array<std::string_view, 3> ROOT_ATTRIBUTES = {"top_hash", "package", "registry"};

std::string hex(std::string_view bytes) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const char character : bytes) {
    const auto byte = static_cast<unsigned char>(character);
    text += digits[byte >> 4U];
    text += digits[byte & 15U];
  }
  return text;
}

std::string base64(std::string_view bytes) {
  static constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    const std::size_t count = std::min<std::size_t>(3, bytes.size() - i);
    for (std::size_t j = 0; j < 3; j++)
      group = group << 8U | (j < count ? static_cast<unsigned char>(bytes[i + j]) : 0U);
    for (std::size_t j = 0; j < 4; j++) text += j <= count ? digits[group >> (18 - 6 * j) & 63U] : '=';
  }
  return text;
}

// As the manifest spells it.
std::string hashText(const Node& node) {
  const std::string_view digest(reinterpret_cast<const char*>(node.digest.data()),
                                node.hashType == HashType::crc64nvme ? 8 : 32);
  return node.hashType == HashType::sha256 ? hex(digest) : base64(digest);
}

const char* hashTypeText(HashType type) {
  switch (type) {
    case HashType::sha256:
      return "SHA256";
    case HashType::sha256Chunked:
      return "sha2-256-chunked";
    case HashType::crc64nvme:
      return "CRC64NVME";
  }
  return "";
}

Error of(Outcome outcome, Error absent) {
  switch (outcome) {
    case Outcome::ok:
      return 0;
    case Outcome::absent:
      return absent;
    case Outcome::damaged:
      return DAMAGED;
  }
  return DAMAGED;
}

// An attribute's value, its size when nobody has room yet, or ERANGE.
Error putSized(std::string_view value, std::uint32_t bytesMax, Reply& reply) {
  if (bytesMax == 0) {
    reply.put(fuse::GetxattrOut{.size = static_cast<std::uint32_t>(value.size()), .padding = 0});
    return 0;
  }
  if (value.size() > bytesMax) return ERANGE;
  reply.put(value);
  return 0;
}

}  // namespace

std::span<const std::uint8_t> Reply::finish(std::uint64_t unique, int error) {
  if (error != 0) clear();
  const fuse::ReplyHeader header{
      .len = static_cast<std::uint32_t>(bytes_), .error = -error, .unique = unique};
  std::memcpy(buffer_.data(), &header, sizeof header);
  return buffer_.first(bytes_);
}

// A bobbin-fuse of 0.1.0 marked files that were not here yet with this bit, and the kernel may still have some open that it
// got before the upgrade.
constexpr std::uint64_t MARK_OF_0_1_0 = 1ULL << 32U;

std::optional<std::uint32_t> positionOf(std::uint64_t nodeid) {
  const std::uint64_t ino = nodeid & ~MARK_OF_0_1_0;
  if (ino == 0 || ino > UINT32_MAX) return std::nullopt;
  return static_cast<std::uint32_t>(ino - 1);
}

Error Names::node(std::uint64_t nodeid, Node& into) const {
  const auto position = positionOf(nodeid);
  return position ? of(index_.view().node(*position, into), ENOENT) : ENOENT;
}

fuse::Attr Names::attr(const Node& node) const {
  const bool isFile = node.kind == NodeKind::file;
  const auto seconds = options_.timeNs / 1'000'000'000;
  // The nanoseconds count up from the second before, also before 1970.
  const auto remainder = options_.timeNs % 1'000'000'000;
  const auto time = static_cast<std::uint64_t>(remainder < 0 ? seconds - 1 : seconds);
  const auto timeNs = static_cast<std::uint32_t>(remainder < 0 ? remainder + 1'000'000'000 : remainder);
  fuse::Attr attr{};
  attr.ino = std::uint64_t{node.position} + 1;
  attr.size = isFile ? node.size : DIRECTORY_BYTES;
  attr.blocks = isFile ? (node.size + 511) / 512 : 0;
  attr.atime = attr.mtime = attr.ctime = time;
  attr.atimeNs = attr.mtimeNs = attr.ctimeNs = timeNs;
  attr.mode = ((isFile ? FILE_MODE : DIRECTORY_MODE) | (options_.showsWriteBits ? WRITE_BITS : 0)) & ~options_.umask;
  attr.nlink = 1;
  attr.uid = options_.uid;
  attr.gid = options_.gid;
  attr.blockBytes = BLOCK_BYTES;
  return attr;
}

fuse::EntryOut Names::entry(const Node& node) const {
  fuse::EntryOut out{};
  out.nodeid = std::uint64_t{node.position} + 1;
  out.entryValid = FOR_EVER;
  out.attrValid = FOR_EVER;
  out.attr = attr(node);
  return out;
}

Error Names::lookup(std::uint64_t parent, std::string_view name, Reply& reply) const {
  const auto directory = positionOf(parent);
  if (!directory) return ENOENT;
  if (name.size() > NAME_BYTES_MAX) return ENAMETOOLONG;
  Node node;
  // With these names the kernel opens a file handle (NFS, open_by_handle_at) whose node it has forgotten. No key has such a
  // component. `parent` is then the node of the handle itself, and may be a file.
  if (name == "." || name == "..") {
    if (const Error error = of(index_.view().node(*directory, node), ENOENT); error != 0) return error;
    if (name == "..") {
      const std::uint32_t above = node.parent;
      if (const Error error = of(index_.view().node(above, node), ENOENT); error != 0) return error;
    }
    reply.put(entry(node));
    return 0;
  }
  switch (index_.view().lookup(*directory, name, node)) {
    case Outcome::ok:
      reply.put(entry(node));
      return 0;
    case Outcome::absent: {
      // A node id of 0 tells the kernel to remember that there is none.
      fuse::EntryOut none{};
      none.entryValid = FOR_EVER;
      reply.put(none);
      return 0;
    }
    case Outcome::damaged:
      return DAMAGED;
  }
  return DAMAGED;
}

Error Names::getattr(std::uint64_t nodeid, Reply& reply) const {
  Node found;
  if (const Error error = node(nodeid, found); error != 0) return error;
  fuse::AttrOut out{};
  out.attrValid = FOR_EVER;
  out.attr = attr(found);
  reply.put(out);
  return 0;
}

Error Names::statx(std::uint64_t nodeid, Reply& reply) const {
  Node found;
  if (const Error error = node(nodeid, found); error != 0) return error;
  const fuse::Attr plain = attr(found);
  const fuse::StatxTime time{
      .seconds = static_cast<std::int64_t>(plain.mtime), .nanoseconds = plain.mtimeNs, .reserved = 0};
  fuse::StatxOut out{};
  out.attrValid = FOR_EVER;
  out.mask = fuse::STATX_BASIC;
  out.blockBytes = plain.blockBytes;
  out.nlink = plain.nlink;
  out.uid = plain.uid;
  out.gid = plain.gid;
  out.mode = static_cast<std::uint16_t>(plain.mode);
  out.ino = plain.ino;
  out.size = plain.size;
  out.blocks = plain.blocks;
  out.atime = out.ctime = out.mtime = time;
  reply.put(out);
  return 0;
}

Error Names::readdir(std::uint64_t nodeid, std::uint64_t offset, std::uint32_t bytesMax, bool isPlus,
                     Reply& reply) const {
  Node directory;
  if (const Error error = node(nodeid, directory); error != 0) return error;
  if (directory.kind != NodeKind::directory) return ENOTDIR;
  const std::size_t limit = std::min<std::size_t>(bytesMax, reply.room());
  // Offsets 0 and 1 are `.` and `..`, then come the children.
  for (std::uint64_t at = offset; at < std::uint64_t{directory.childCount} + 2; at++) {
    Node child;
    std::string_view name = at == 0 ? "." : "..";
    fuse::EntryOut plus{};
    if (at < 2) {
      child.kind = NodeKind::directory;
      child.position = at == 0 ? directory.position : directory.parent;
    } else {
      const Outcome outcome =
          index_.view().node(directory.firstChild + static_cast<std::uint32_t>(at - 2), child);
      if (outcome != Outcome::ok) return DAMAGED;
      name = child.name;
      if (isPlus) plus = entry(child);
    }
    const std::size_t nameBytes = (name.size() + 7) / 8 * 8;
    const std::size_t bytes = (isPlus ? sizeof plus : 0) + sizeof(fuse::Dirent) + nameBytes;
    if (reply.bodyBytes() + bytes > limit) break;
    if (isPlus) reply.put(plus);
    reply.put(fuse::Dirent{
        .ino = std::uint64_t{child.position} + 1,
        .offset = at + 1,
        .nameBytes = static_cast<std::uint32_t>(name.size()),
        .type = child.kind == NodeKind::directory ? std::uint32_t{DT_DIR} : std::uint32_t{DT_REG}});
    std::uint8_t* padded = reply.grow(nameBytes);
    std::memset(padded, 0, nameBytes);
    std::memcpy(padded, name.data(), name.size());
  }
  return 0;
}

Error Names::statfs(std::uint64_t freeBytes, Reply& reply) const {
  const IndexFacts& facts = index_.view().facts();
  fuse::StatfsOut out{};
  out.blockBytes = out.fragmentBytes = STATFS_BLOCK_BYTES;
  out.blocksFree = out.blocksAvailable = freeBytes / STATFS_BLOCK_BYTES;
  out.blocks = (facts.bytes + STATFS_BLOCK_BYTES - 1) / STATFS_BLOCK_BYTES + out.blocksFree;
  out.files = facts.nodes;
  out.nameBytesMax = NAME_BYTES_MAX;
  reply.put(out);
  return 0;
}

Error Names::lseek(std::uint64_t nodeid, const fuse::LseekIn& in, Reply& reply) const {
  Node found;
  if (const Error error = node(nodeid, found); error != 0) return error;
  if (found.kind != NodeKind::file) return EINVAL;
  if (in.whence != SEEK_DATA && in.whence != SEEK_HOLE) return EINVAL;
  if (in.offset >= found.size) return ENXIO;
  // All of it is data.
  reply.put(fuse::LseekOut{.offset = in.whence == SEEK_DATA ? in.offset : found.size});
  return 0;
}

Error Names::metadata(const Node& node, std::optional<std::string>& value) const {
  const Span& span = node.position == 0 ? index_.view().facts().userMeta : node.meta;
  if (span.bytes == 0) return 0;
  // Of values that the kernel cannot carry, not even the bytes are read.
  if (span.bytes > ATTRIBUTE_BYTES_MAX) return E2BIG;
  value = index_.manifestText(span);
  return value ? 0 : DAMAGED;
}

Error Names::attribute(const Node& node, std::string_view name, const StateOf& stateOf,
                       std::optional<std::string>& value) const {
  if (name == "meta") return metadata(node, value);
  if (node.position == 0) {
    if (name == "top_hash") value = hex(index_.view().facts().topHash);
    if (name == "package") value = options_.package;
    if (name == "registry") value = options_.registry;
    if (name == "message") value = options_.message;
    return 0;
  }
  if (node.kind == NodeKind::directory) return 0;
  if (name == "hash") value = hashText(node);
  if (name == "hash_type") value = hashTypeText(node.hashType);
  if (name == "physical_key") value = std::string(node.physicalKey);
  if (name == "cached") value = stateOf(node).isCached ? "true" : "false";
  if (name == "verified") value = stateOf(node).isVerified ? "true" : "false";
  return 0;
}

Error Names::getxattr(std::uint64_t nodeid, std::string_view name, std::uint32_t bytesMax,
                      const StateOf& stateOf, Reply& reply) const {
  Node found;
  if (const Error error = node(nodeid, found); error != 0) return error;
  if (!name.starts_with(ATTRIBUTE_PREFIX)) return ENODATA;
  std::optional<std::string> value;
  name.remove_prefix(ATTRIBUTE_PREFIX.size());
  if (const Error error = attribute(found, name, stateOf, value); error != 0) return error;
  if (!value) return ENODATA;
  if (value->size() > ATTRIBUTE_BYTES_MAX) return E2BIG;
  return putSized(*value, bytesMax, reply);
}

// By default it names none: a program that copies a file with its attributes copies all that are named, and values can be
// larger than another filesystem takes, change, or be wrong of the copy once somebody edits it. A program that knows a name
// gets its value either way. Never named is a value that the kernel cannot carry.
Error Names::listxattr(std::uint64_t nodeid, std::uint32_t bytesMax, Reply& reply) const {
  Node found;
  if (const Error error = node(nodeid, found); error != 0) return error;
  std::string list;
  const auto add = [&](std::string_view name) { list.append(ATTRIBUTE_PREFIX).append(name).push_back('\0'); };
  if (options_.listAttributes) {
    const bool isRoot = found.position == 0;
    if (isRoot) std::for_each(ROOT_ATTRIBUTES.begin(), ROOT_ATTRIBUTES.end(), add);
    if (found.kind == NodeKind::file) std::for_each(FILE_ATTRIBUTES.begin(), FILE_ATTRIBUTES.end(), add);
    const auto metaBytes = (isRoot ? index_.view().facts().userMeta : found.meta).bytes;
    if (metaBytes > 0 && metaBytes <= ATTRIBUTE_BYTES_MAX) add("meta");
    if (isRoot && options_.message && options_.message->size() <= ATTRIBUTE_BYTES_MAX) add("message");
  }
  return putSized(list, bytesMax, reply);
}

}  // namespace bobbin
