#include "session/cache_room.hpp"

#include <gtest/gtest.h>

namespace bobbin::test {
namespace {

std::string limits(const char* quota, const char* floor, const char* objects, const char* others) {
  return std::string("{\"limitBytes\":") + quota + ",\"freeBytesMin\":" + floor + ",\"objectBytes\":" + objects +
         ",\"otherBytes\":" + others + "}\n";
}

TEST(CacheRoom, IsWhatTheQuotaLeavesToObjects) {
  EXPECT_EQ(roomBytes(limits("1000", "10", "0", "0"), 5000), 1000U);
  EXPECT_EQ(roomBytes(limits("1000", "10", "900", "100"), 5000), 900U) << "objects give way, the rest does not";
  EXPECT_EQ(roomBytes(limits("1000", "10", "0", "2000"), 5000), 0U);
}

TEST(CacheRoom, IsNeverMoreThanTheDiskHas) {
  EXPECT_EQ(roomBytes(limits("1000", "10", "0", "0"), 500), 490U);
  EXPECT_EQ(roomBytes(limits("1000", "10", "300", "0"), 500), 790U);
  EXPECT_EQ(roomBytes(limits("1000", "600", "0", "0"), 500), 0U);
}

TEST(CacheRoom, IsNothingWhereTheLimitsAreNotOurs) {
  for (const char* text : {"", "{}", "{\"limitBytes\":1000,\"freeBytesMin\":10}\n", "\n", "{\"limitBytes\":x"})
    EXPECT_EQ(roomBytes(text, 5000), 0U) << text;
  EXPECT_EQ(roomBytes(limits("-1", "0", "0", "0"), 5000), 0U);
  EXPECT_EQ(roomBytes(limits("99999999999999999999999", "0", "0", "0"), 5000), 0U);
  EXPECT_EQ(roomBytesOf(CacheFolder()), 0U);
}

}  // namespace
}  // namespace bobbin::test
