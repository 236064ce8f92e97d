#include "index/index_view.hpp"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace bobbin {

namespace {

static_assert(std::endian::native == std::endian::little,
              "an index is little-endian, and so must be the machine");

constexpr std::uint64_t HEADER_BYTES = 4096;
constexpr std::uint64_t BLOCK_BYTES = 65'536;
constexpr std::uint32_t VERSION = 1;
constexpr std::size_t NAME_BYTES_MAX = 255;
// A file's offsets are signed for the kernel.
constexpr std::uint64_t FILE_BYTES_MAX = INT64_MAX;
constexpr std::uint8_t HASH_TYPES = 3;
constexpr std::size_t CRC64NVME_BYTES = 8;

// Of a block.
constexpr std::uint8_t UNCHECKED = 0;
constexpr std::uint8_t SOUND = 1;
constexpr std::uint8_t DAMAGED = 2;

struct RawSection {
  std::uint64_t offset;
  std::uint64_t bytes;
};

struct RawSpan {
  std::uint64_t offset;
  std::uint32_t bytes;
  std::uint32_t crc;
};

struct RawHeader {
  char magic[8];
  std::uint32_t version;
  std::uint32_t blockBytes;
  std::uint64_t fileBytes;
  std::uint64_t bodyBytes;
  std::uint32_t nodes;
  std::uint32_t entries;
  std::uint64_t entryBytes;
  std::uint64_t manifestBytes;
  std::uint32_t quarantined;
  std::uint32_t checksumsCrc;
  char topHash[32];
  char manifestSha256[32];
  // Nodes, names, keys, quarantined.
  RawSection sections[4];
  // The manifest's `user_meta`, `message`, `workflow`.
  RawSpan spans[3];
  std::uint8_t unused[3852];
  std::uint32_t crc;
};
static_assert(sizeof(RawHeader) == HEADER_BYTES && offsetof(RawHeader, crc) == 4092);

struct RawNode {
  std::uint32_t parent;
  std::uint8_t kind;
  std::uint8_t hashType;
  std::uint8_t nameBytes;
  std::uint8_t unused;
  std::uint64_t nameOffset;
  RawSpan meta;
  // A file's size; or in the low half the first child, in the high half the number of children.
  std::uint64_t sizeOrChildren;
  std::uint64_t keyOffset;
  std::uint32_t keyBytes;
  std::uint32_t row;
  std::uint8_t digest[32];
  std::uint8_t unusedEnd[8];
};
static_assert(sizeof(RawNode) == 96 && offsetof(RawNode, digest) == 56);

Span spanOf(const RawSpan& raw) { return {.offset = raw.offset, .bytes = raw.bytes, .crc = raw.crc}; }

bool liesWithin(std::uint64_t offset, std::uint64_t bytes, std::uint64_t limit) {
  return offset <= limit && bytes <= limit - offset;
}

std::string_view textAt(const std::uint8_t* bytes, std::size_t count) {
  return {reinterpret_cast<const char*>(bytes), count};
}

bool hasByte(std::string_view text, char byte) {
  return std::memchr(text.data(), byte, text.size()) != nullptr;
}

// What a kernel takes as one component of a path.
bool isName(std::string_view name) {
  if (name.empty() || hasByte(name, '\0') || hasByte(name, '/')) return false;
  return name != "." && name != "..";
}

}  // namespace

std::span<const std::uint8_t, 32> Node::emptyDigest() {
  static constexpr std::array<std::uint8_t, 32> zeros{};
  return zeros;
}

std::unique_ptr<IndexView> IndexView::open(std::span<const std::uint8_t> file, std::string& reason) {
  const auto refuse = [&reason](const char* why) {
    reason = why;
    return nullptr;
  };
  if (file.size() < HEADER_BYTES) return refuse("it is shorter than its header");
  // Copied: what was compared cannot change afterwards.
  RawHeader header;
  std::memcpy(&header, file.data(), sizeof header);
  if (std::memcmp(header.magic, "BOBBINIX", sizeof header.magic) != 0)
    return refuse("it does not start as one");
  if (header.version != VERSION || header.blockBytes != BLOCK_BYTES)
    return refuse("it is of another version");
  const std::span headerBytes(reinterpret_cast<const std::uint8_t*>(&header), offsetof(RawHeader, crc));
  if (crc32(headerBytes) != header.crc) return refuse("its header is damaged");
  if (header.fileBytes != file.size()) return refuse("it is shorter or longer than it says");

  if (header.bodyBytes > file.size() - HEADER_BYTES) return refuse("its lengths do not add up");
  const std::uint64_t blocks = header.bodyBytes / BLOCK_BYTES + (header.bodyBytes % BLOCK_BYTES > 0 ? 1 : 0);
  const auto checksums = file.subspan(HEADER_BYTES + header.bodyBytes);
  if (checksums.size() != 4 * blocks) return refuse("its lengths do not add up");
  if (crc32(checksums) != header.checksumsCrc) return refuse("its checksums are damaged");
  for (const RawSection& section : header.sections) {
    if (section.offset < HEADER_BYTES ||
        !liesWithin(section.offset - HEADER_BYTES, section.bytes, header.bodyBytes))
      return refuse("a section lies outside it");
  }
  // The root is no entry.
  if (header.entries >= header.nodes ||
      header.sections[0].bytes != std::uint64_t{header.nodes} * sizeof(RawNode))
    return refuse("its lengths do not add up");
  for (const RawSpan& span : header.spans) {
    if (!liesWithin(span.offset, span.bytes, header.manifestBytes))
      return refuse("metadata lies outside the manifest");
  }

  std::unique_ptr<IndexView> view(new IndexView);
  const auto section = [&header](std::size_t number) {
    return Section{.offset = header.sections[number].offset, .bytes = header.sections[number].bytes};
  };
  view->file_ = file;
  view->bodyBytes_ = header.bodyBytes;
  view->nodes_ = section(0);
  view->names_ = section(1);
  view->keys_ = section(2);
  view->facts_ = {
      .nodes = header.nodes,
      .entries = header.entries,
      .bytes = header.entryBytes,
      .manifestBytes = header.manifestBytes,
      .topHash = std::string(header.topHash, sizeof header.topHash),
      .manifestSha256 = std::string(header.manifestSha256, sizeof header.manifestSha256),
      .userMeta = spanOf(header.spans[0]),
      .message = spanOf(header.spans[1]),
      .workflow = spanOf(header.spans[2]),
  };
  view->checked_ = std::make_unique<std::atomic<std::uint8_t>[]>(blocks);
  return view;
}

Outcome IndexView::node(std::uint32_t position, Node& into) const {
  if (position >= facts_.nodes) return Outcome::absent;
  const std::uint8_t* bytes = at(nodes_, std::uint64_t{position} * sizeof(RawNode), sizeof(RawNode));
  if (bytes == nullptr) return Outcome::damaged;
  // Copied: whoever may write to the file could alter it between a check and its use.
  RawNode raw;
  std::memcpy(&raw, bytes, sizeof raw);

  const std::uint8_t* name = at(names_, raw.nameOffset, raw.nameBytes);
  if (name == nullptr) return Outcome::damaged;
  into.position = position;
  into.parent = raw.parent;
  into.name = textAt(name, raw.nameBytes);
  if (position == 0) {
    if (raw.parent != 0 || raw.nameBytes != 0) return Outcome::damaged;
  } else if (raw.parent >= position || !isName(into.name)) {
    return Outcome::damaged;
  }
  into.meta = spanOf(raw.meta);
  if (!liesWithin(into.meta.offset, into.meta.bytes, facts_.manifestBytes)) return Outcome::damaged;

  if (raw.kind == static_cast<std::uint8_t>(NodeKind::directory)) {
    into.kind = NodeKind::directory;
    into.firstChild = static_cast<std::uint32_t>(raw.sizeOrChildren);
    into.childCount = static_cast<std::uint32_t>(raw.sizeOrChildren >> 32U);
    // Breadth-first: children come after their directory, so nothing goes in a circle.
    if (into.firstChild <= position || !liesWithin(into.firstChild, into.childCount, facts_.nodes))
      return Outcome::damaged;
    into.size = 0;
    into.hashType = HashType::sha256;
    into.digest = Node::emptyDigest();
    into.physicalKey = {};
    return Outcome::ok;
  }
  if (raw.kind != static_cast<std::uint8_t>(NodeKind::file) || position == 0) return Outcome::damaged;
  const std::uint8_t* key = at(keys_, raw.keyOffset, raw.keyBytes);
  if (key == nullptr || raw.keyBytes == 0 || raw.sizeOrChildren > FILE_BYTES_MAX ||
      raw.hashType >= HASH_TYPES)
    return Outcome::damaged;
  into.kind = NodeKind::file;
  into.firstChild = 0;
  into.childCount = 0;
  into.size = raw.sizeOrChildren;
  into.hashType = static_cast<HashType>(raw.hashType);
  into.digest = std::span<const std::uint8_t, 32>(bytes + offsetof(RawNode, digest), 32);
  into.physicalKey = textAt(key, raw.keyBytes);
  if (into.hashType == HashType::crc64nvme &&
      std::any_of(raw.digest + CRC64NVME_BYTES, std::end(raw.digest), [](auto byte) { return byte != 0; }))
    return Outcome::damaged;
  return Outcome::ok;
}

Outcome IndexView::lookup(std::uint32_t directory, std::string_view name, Node& into) const {
  if (const Outcome outcome = node(directory, into); outcome != Outcome::ok) return outcome;
  if (into.kind != NodeKind::directory || name.empty() || name.size() > NAME_BYTES_MAX)
    return Outcome::absent;
  std::uint32_t low = into.firstChild;
  std::uint32_t high = low + into.childCount;
  while (low < high) {
    const std::uint32_t middle = low + (high - low) / 2;
    std::string_view found;
    if (!nameOf(middle, found)) return Outcome::damaged;
    const int order = found.compare(name);
    if (order == 0) {
      const Outcome outcome = node(middle, into);
      // A child of another directory, or a name that changed under us, is no answer.
      if (outcome == Outcome::ok && (into.parent != directory || into.name != name)) return Outcome::damaged;
      return outcome == Outcome::ok ? Outcome::ok : Outcome::damaged;
    }
    if (order < 0) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return Outcome::absent;
}

bool IndexView::nameOf(std::uint32_t position, std::string_view& into) const {
  const std::uint8_t* bytes = at(nodes_, std::uint64_t{position} * sizeof(RawNode), sizeof(RawNode));
  if (bytes == nullptr) return false;
  std::uint8_t nameBytes = 0;
  std::uint64_t nameOffset = 0;
  std::memcpy(&nameBytes, bytes + offsetof(RawNode, nameBytes), sizeof nameBytes);
  std::memcpy(&nameOffset, bytes + offsetof(RawNode, nameOffset), sizeof nameOffset);
  const std::uint8_t* name = at(names_, nameOffset, nameBytes);
  if (name == nullptr) return false;
  into = textAt(name, nameBytes);
  // Zeros stand where a file was cut while it was mapped; they must not end a search as `absent`.
  return !into.empty() && !hasByte(into, '\0');
}

const std::uint8_t* IndexView::at(const Section& section, std::uint64_t offset, std::uint64_t bytes) const {
  if (!liesWithin(offset, bytes, section.bytes)) return nullptr;
  const std::uint64_t start = section.offset - HEADER_BYTES + offset;
  if (bytes > 0) {
    const std::uint64_t last = (start + bytes - 1) / BLOCK_BYTES;
    for (std::uint64_t block = start / BLOCK_BYTES; block <= last; block++) {
      if (!checkBlock(block)) return nullptr;
    }
  }
  return file_.data() + HEADER_BYTES + start;
}

bool IndexView::checkBlock(std::uint64_t block) const {
  // Relaxed: the byte stands for itself, the block it speaks of was there before it.
  std::atomic<std::uint8_t>& state = checked_[block];
  const std::uint8_t known = state.load(std::memory_order_relaxed);
  if (known != UNCHECKED) [[likely]]
    return known == SOUND;
  const std::uint64_t start = block * BLOCK_BYTES;
  const auto bytes = file_.subspan(HEADER_BYTES + start, std::min(BLOCK_BYTES, bodyBytes_ - start));
  std::uint32_t expected = 0;
  std::memcpy(&expected, file_.data() + HEADER_BYTES + bodyBytes_ + 4 * block, sizeof expected);
  const bool isSound = crc32(bytes) == expected;
  state.store(isSound ? SOUND : DAMAGED, std::memory_order_relaxed);
  return isSound;
}

}  // namespace bobbin
