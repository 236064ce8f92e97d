#include <gtest/gtest.h>

#include <random>

#include "support.hpp"

namespace bobbin::test {
namespace {

std::uint32_t crcOf(std::string_view text) {
  return crc32({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()});
}

// From the definition, a bit at a time.
std::uint32_t slowCrc(std::span<const std::uint8_t> bytes) {
  std::uint32_t crc = ~0U;
  for (const auto byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; bit++) crc = (crc & 1U) != 0 ? crc >> 1U ^ 0xEDB88320U : crc >> 1U;
  }
  return ~crc;
}

TEST(Crc32, GivesThePublishedCheckValues) {
  EXPECT_EQ(crcOf(""), 0U);
  EXPECT_EQ(crcOf("123456789"), 0xCBF43926U);
  EXPECT_EQ(crcOf("The quick brown fox jumps over the lazy dog"), 0x414FA339U);
}

TEST(Crc32, IsTheSameAsBitByBitForEveryLengthAndAlignment) {
  std::mt19937 random(1);
  Bytes bytes(200);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
  for (std::size_t from = 0; from < 17; from++) {
    for (std::size_t length = 0; from + length <= bytes.size(); length++) {
      const auto part = std::span<const std::uint8_t>(bytes).subspan(from, length);
      ASSERT_EQ(crc32(part), slowCrc(part)) << from << "+" << length;
    }
  }
}

TEST(Crc32, GoesOnFromASeed) {
  std::mt19937 random(2);
  Bytes bytes(5000);
  for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
  const auto all = std::span<const std::uint8_t>(bytes);
  for (const std::size_t cut : {0U, 1U, 15U, 16U, 17U, 4096U, 4999U, 5000U})
    EXPECT_EQ(crc32(all.subspan(cut), crc32(all.first(cut))), crc32(all)) << cut;
}

}  // namespace
}  // namespace bobbin::test
