#include "protocol/negotiate.hpp"

#include <gtest/gtest.h>

namespace bobbin::test {
namespace {

using fuse::Agreement;
using fuse::InitIn;
using fuse::InitOut;
using fuse::Wishes;

constexpr std::uint64_t ALL = ~std::uint64_t{0};

InitIn kernel(std::uint32_t minor, std::uint64_t flags) {
  InitIn in{};
  in.major = 7;
  in.minor = minor;
  in.maxReadahead = 131'072;
  in.flags = static_cast<std::uint32_t>(flags);
  in.flags2 = static_cast<std::uint32_t>(flags >> 32U);
  return in;
}

struct Result {
  std::optional<Agreement> agreement;
  InitOut out;
  std::string reason;
};

Result negotiateWith(const InitIn& in, const Wishes& wishes = {}) {
  Result result;
  result.agreement = fuse::negotiate(in, wishes, result.out, result.reason);
  return result;
}

std::uint64_t flagsOf(const InitOut& out) { return out.flags | std::uint64_t{out.flags2} << 32U; }

TEST(Negotiate, RefusesKernelsBeforeLinux54AndSaysSo) {
  for (const std::uint32_t minor : {0U, 12U, 30U}) {
    const auto [agreement, out, reason] = negotiateWith(kernel(minor, ALL));
    EXPECT_FALSE(agreement);
    EXPECT_NE(reason.find("7." + std::to_string(minor)), std::string::npos);
    EXPECT_NE(reason.find("5.4"), std::string::npos);
  }
  InitIn other = kernel(45, ALL);
  for (const std::uint32_t major : {0U, 6U, 8U}) {
    other.major = major;
    EXPECT_FALSE(negotiateWith(other).agreement);
  }
  EXPECT_TRUE(negotiateWith(kernel(31, ALL)).agreement);
}

TEST(Negotiate, SpeaksTheOlderOfBothVersions) {
  for (const auto& [theirs, agreed] : {std::pair{31U, 31U}, {40U, 40U}, {45U, 45U}, {60U, 45U}, {~0U, 45U}}) {
    const auto [agreement, out, reason] = negotiateWith(kernel(theirs, ALL));
    ASSERT_TRUE(agreement);
    EXPECT_EQ(agreement->minor, agreed);
    EXPECT_EQ(out.minor, agreed);
    EXPECT_EQ(out.major, 7U);
  }
}

TEST(Negotiate, AsksForNothingThatTheKernelDoesNotOffer) {
  const Wishes everything{.passthrough = true, .noOpen = true, .resend = true};
  const auto [none, noneOut, noneReason] = negotiateWith(kernel(45, 0), everything);
  ASSERT_TRUE(none);
  EXPECT_EQ(none->flags, 0U);
  EXPECT_EQ(flagsOf(noneOut), 0U);
  for (unsigned bit = 0; bit < 64; bit++) {
    const std::uint64_t offered = 1ULL << bit | fuse::init::INIT_EXT;
    const auto [agreement, out, reason] = negotiateWith(kernel(45, offered), everything);
    ASSERT_TRUE(agreement);
    EXPECT_EQ(flagsOf(out) & ~offered, 0U) << bit;
    EXPECT_EQ(agreement->flags, flagsOf(out)) << bit;
  }
}

TEST(Negotiate, DoesNotLookAtHighFlagsWithoutInitExt) {
  const auto [agreement, out, reason] =
      negotiateWith(kernel(45, ALL & ~fuse::init::INIT_EXT), {.passthrough = true});
  ASSERT_TRUE(agreement);
  EXPECT_EQ(out.flags2, 0U);
  EXPECT_FALSE(agreement->has(fuse::init::PASSTHROUGH));
  EXPECT_EQ(out.maxStackDepth, 0U);
}

TEST(Negotiate, TakesWhatWasWishedForAndNothingElse) {
  using namespace fuse::init;
  constexpr std::uint64_t ALWAYS =
      ASYNC_READ | DO_READDIRPLUS | PARALLEL_DIROPS | MAX_PAGES | NO_OPENDIR_SUPPORT | INIT_EXT | ALLOW_IDMAP | EXPORT_SUPPORT;
  const auto agreed = [](const Wishes& wishes) {
    const auto [agreement, out, reason] = negotiateWith(kernel(45, ALL), wishes);
    EXPECT_EQ(out.maxStackDepth, wishes.passthrough ? 1U : 0U);
    return agreement->flags;
  };
  EXPECT_EQ(agreed({.passthrough = false, .noOpen = false, .resend = false}), ALWAYS);
  EXPECT_EQ(agreed({.passthrough = true, .noOpen = false, .resend = false}), ALWAYS | PASSTHROUGH);
  EXPECT_EQ(agreed({.passthrough = false, .noOpen = true, .resend = false}), ALWAYS | NO_OPEN_SUPPORT);
  EXPECT_EQ(agreed({.passthrough = false, .noOpen = false, .resend = true}), ALWAYS | HAS_RESEND);
}

TEST(Negotiate, AsksForReadsOfOneMebibyte) {
  const auto out = negotiateWith(kernel(45, ALL)).out;
  EXPECT_EQ(out.maxReadahead, 1U << 20U);
  EXPECT_EQ(out.maxPages, 256U);
  EXPECT_GE(out.maxWrite, 4096U);
  EXPECT_GE(out.maxBackground, out.congestionThreshold);
}

}  // namespace
}  // namespace bobbin::test
