// What the tests and the fuzz targets share: package indexes that are made by hand from the layout
// (daemon/index/index-layout.md), without a line of the code under test but CRC-32, and the one that
// the compiler made.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "index/index_view.hpp"

namespace bobbin::test {

using Bytes = std::vector<std::uint8_t>;

inline constexpr std::size_t HEADER_BYTES = 4096;
inline constexpr std::size_t BLOCK_BYTES = 65'536;
inline constexpr std::size_t NODE_BYTES = 96;

template <typename T>
void put(Bytes& bytes, std::size_t at, T value) {
  std::memcpy(bytes.data() + at, &value, sizeof value);
}

template <typename T>
T get(const Bytes& bytes, std::size_t at) {
  T value{};
  std::memcpy(&value, bytes.data() + at, sizeof value);
  return value;
}

// Header and body of a small index, not sealed, whose keys section is `padding` bytes longer than it
// must be, so that what follows it lies across blocks:
//
//   0 ""         directory
//   1 "a"        directory, with metadata
//   2 "b.bin"    file, 3000 bytes, SHA256
//   3 "one.txt"  file, CRC64NVME, with metadata   (in "a")
//   4 "two.txt"  file, sha2-256-chunked           (in "a")
Bytes craftIndex(std::size_t padding = 0);

// Where a node's 96 bytes are.
std::size_t nodeAt(const Bytes& index, std::size_t position);

// Takes the table of checksums off, so that the body may be altered and sealed again.
Bytes unsealed(const Bytes& index);
// Header and body, with lengths and all checksums made right: damage that no checksum shows.
Bytes sealed(Bytes headerAndBody);

// The same numbers for the same seed.
class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  unsigned below(unsigned limit) { return static_cast<unsigned>(engine_() % limit); }

 private:
  std::mt19937 engine_;
};

// A view of its own copy of the bytes, which end where the allocation ends.
struct OwnedIndex {
  explicit OwnedIndex(std::span<const std::uint8_t> file);
  std::vector<std::uint8_t> bytes;
  std::string reason;
  std::unique_ptr<IndexView> view;
};

// What one node is, in text, every field of it.
std::string describe(const Node& node);
std::string hexOf(std::span<const std::uint8_t> bytes);

// A package as the TypeScript compiler made it, and as the TypeScript reader sees it.
struct CompiledPackage {
  struct Line {
    std::uint32_t position = 0;
    std::uint32_t parent = 0;
    std::string kind;
    std::string name;
    // Files: bytes. Directories: children.
    std::uint64_t count = 0;
    std::string hashType;
    std::string digestHex;
    std::string physicalKey;
    // JSON; empty: none.
    std::string metadata;
  };
  Bytes index;
  Bytes manifest;
  std::vector<Line> nodes;
  // By name: topHash, manifestSha256, entries, bytes, message, userMeta.
  std::map<std::string, std::string> facts;
};

// Read once. Nothing: BOBBIN_TEST_PACKAGE is not set.
const CompiledPackage* compiledPackage();

}  // namespace bobbin::test
