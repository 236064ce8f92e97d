// A bounds-checked view of a package index (daemon/index/index-layout.md): bytes in, values out, no
// system call.
//
// The bytes come from a file that anybody may have damaged. Every offset is compared with the file's
// size before it is used, and the CRC-32 of a 64 KiB block is compared when the block is first read;
// from then on it is taken for what it was. What is wrong is `damaged`, never a byte from elsewhere.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace bobbin {

enum class NodeKind : std::uint8_t { directory = 1, file = 2 };

// As numbered in the layout.
enum class HashType : std::uint8_t { sha256 = 0, sha256Chunked = 1, crc64nvme = 2 };

// A range of the manifest's bytes; `bytes` 0 means absent.
struct Span {
  std::uint64_t offset = 0;
  std::uint32_t bytes = 0;
  std::uint32_t crc = 0;
};

// One node, decoded. The views point into the index and live as long as its bytes.
struct Node {
  std::uint32_t position = 0;
  // The root's is 0, itself.
  std::uint32_t parent = 0;
  NodeKind kind = NodeKind::directory;
  std::string_view name;
  Span meta;
  // Directories.
  std::uint32_t firstChild = 0;
  std::uint32_t childCount = 0;
  // Files.
  std::uint64_t size = 0;
  HashType hashType = HashType::sha256;
  // 32 bytes; a CRC64NVME has 8, then zeros.
  std::span<const std::uint8_t, 32> digest = emptyDigest();
  std::string_view physicalKey;

  static std::span<const std::uint8_t, 32> emptyDigest();
};

struct IndexFacts {
  std::uint32_t nodes = 0;
  std::uint32_t entries = 0;
  // Of all entries together.
  std::uint64_t bytes = 0;
  std::uint64_t manifestBytes = 0;
  // Raw, 32 bytes each.
  std::string topHash;
  std::string manifestSha256;
  Span userMeta;
  Span message;
  Span workflow;
};

enum class Outcome : std::uint8_t { ok, absent, damaged };

// Owned by a mount; any thread may call its const methods at once.
class IndexView {
 public:
  // Looks at the header, the sections and the table of checksums, and at nothing else. `nullptr`: it
  // cannot be used, and `reason` says why, for people.
  static std::unique_ptr<IndexView> open(std::span<const std::uint8_t> file, std::string& reason);

  const IndexFacts& facts() const { return facts_; }

  // `absent`: there is no such position. A file's key is checked and returned, too. What `into` holds
  // counts only with `ok`, here and below.
  Outcome node(std::uint32_t position, Node& into) const;

  // The child of a directory with exactly these bytes as its name. `absent` also when the directory is
  // a file. No allocation.
  Outcome lookup(std::uint32_t directory, std::string_view name, Node& into) const;

 private:
  IndexView() = default;
  struct Section {
    std::uint64_t offset = 0;
    std::uint64_t bytes = 0;
  };
  // Null: outside its section, or in a block that is damaged.
  const std::uint8_t* at(const Section& section, std::uint64_t offset, std::uint64_t bytes) const;
  bool checkBlock(std::uint64_t block) const;
  // A child's name, for the search. False: damaged.
  bool nameOf(std::uint32_t position, std::string_view& into) const;

  std::span<const std::uint8_t> file_;
  std::uint64_t bodyBytes_ = 0;
  Section nodes_;
  Section names_;
  Section keys_;
  IndexFacts facts_;
  // One a block: 0 not looked at, 1 sound, 2 damaged.
  std::unique_ptr<std::atomic<std::uint8_t>[]> checked_;
};

// CRC-32 as zlib has it; `seed` continues an earlier one.
std::uint32_t crc32(std::span<const std::uint8_t> bytes, std::uint32_t seed = 0);

}  // namespace bobbin
