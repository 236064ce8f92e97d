// What the log writes of names: JSON, and nothing that a terminal would obey.
#include "link/system.hpp"

namespace bobbin {
namespace {

TEST(Log, EscapesWhatATerminalWouldObey) {
  EXPECT_EQ(field("n", "a\"b\\c"), R"("n":"a\"b\\c")");
  EXPECT_EQ(field("n", "\x1b]0;x\x07\n\x7f"), R"("n":"\u001b]0;x\u0007\u000a\u007f")");
  EXPECT_EQ(field("n", "\u009b2J\u0080\u009f"), R"("n":"\u009b2J\u0080\u009f")");
  EXPECT_EQ(field("n", "\u061c\u200e\u200f\u202e\u2028\u2066\u2069"),
            R"("n":"\u061c\u200e\u200f\u202e\u2028\u2066\u2069")");
}

TEST(Log, LeavesOtherNamesAsTheyAre) {
  const std::string text = "\u00e9\u3042\u2027\u202f\u2065\u00a0\U0001F600";
  EXPECT_EQ(field("n", text), "\"n\":\"" + text + "\"");
  // Cut off, or no UTF-8 at all: bytes as they are, and none read beyond the end.
  for (const std::string_view bytes : {"\xc2", "\xe2\x80", "\x9b", "\xff\xc2", "\xe2x"})
    EXPECT_EQ(field("n", bytes), "\"n\":\"" + std::string(bytes) + "\"");
}

TEST(LineBudget, LeavesOutWhatIsTooMuchAndCountsIt) {
  LineBudget budget;
  const auto begin = Clock::now();
  const auto later = begin + std::chrono::minutes{1};
  for (unsigned i = 0; i < LineBudget::LINES_PER_MINUTE; i++) EXPECT_TRUE(budget.take(begin));
  for (unsigned i = 0; i < 3; i++) EXPECT_FALSE(budget.take(begin));
  EXPECT_EQ(budget.takeLeftOut(begin), 0U);
  EXPECT_EQ(budget.takeLeftOut(later), 3U);
  EXPECT_EQ(budget.takeLeftOut(later), 0U);
  EXPECT_TRUE(budget.take(later));
}

}  // namespace
}  // namespace bobbin
