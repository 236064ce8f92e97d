// CRC-32 (polynomial 0xEDB88320, as zlib, PNG and Ethernet have it), sixteen bytes a step.
//
// A block of an index is checked when it is first read, so a reader waits for it: bytewise would be
// 150 µs a block, this is 17.
#include <array>
#include <cstring>

#include "index/index_view.hpp"

namespace bobbin {

namespace {

constexpr std::size_t STEP_BYTES = 16;
using Table = std::array<std::uint32_t, 256>;

// TABLES[n][byte]: what `byte` comes to when n more bytes follow it.
constexpr std::array<Table, STEP_BYTES> TABLES = [] {
  std::array<Table, STEP_BYTES> tables{};
  for (std::uint32_t byte = 0; byte < 256; byte++) {
    std::uint32_t crc = byte;
    for (int bit = 0; bit < 8; bit++) crc = crc >> 1U ^ ((crc & 1U) != 0 ? 0xEDB88320U : 0U);
    tables[0][byte] = crc;
  }
  for (std::size_t n = 1; n < STEP_BYTES; n++) {
    for (std::size_t byte = 0; byte < 256; byte++) {
      const std::uint32_t crc = tables[n - 1][byte];
      tables[n][byte] = crc >> 8U ^ tables[0][crc & 0xFFU];
    }
  }
  return tables;
}();

// Four bytes, `after` of which follow the last one in this step.
inline std::uint32_t fold(std::uint32_t word, std::size_t after) {
  return TABLES[after + 3][word & 0xFFU] ^ TABLES[after + 2][word >> 8U & 0xFFU] ^
         TABLES[after + 1][word >> 16U & 0xFFU] ^ TABLES[after][word >> 24U];
}

}  // namespace

std::uint32_t crc32(std::span<const std::uint8_t> bytes, std::uint32_t seed) {
  std::uint32_t crc = ~seed;
  const std::uint8_t* at = bytes.data();
  std::size_t left = bytes.size();
  for (; left >= STEP_BYTES; at += STEP_BYTES, left -= STEP_BYTES) {
    std::uint32_t words[4];
    std::memcpy(words, at, sizeof words);
    crc = fold(words[0] ^ crc, 12) ^ fold(words[1], 8) ^ fold(words[2], 4) ^ fold(words[3], 0);
  }
  for (; left > 0; at++, left--) crc = crc >> 8U ^ TABLES[0][(crc ^ *at) & 0xFFU];
  return ~crc;
}

}  // namespace bobbin
