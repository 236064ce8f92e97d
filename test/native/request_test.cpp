#include "protocol/request.hpp"

#include <gtest/gtest.h>

#include <random>

#include "support.hpp"

namespace bobbin::test {
namespace {

using fuse::Opcode;
using fuse::Request;
using fuse::RequestHeader;

Bytes message(Opcode opcode, std::string_view body, std::uint16_t extensionWords = 0) {
  Bytes bytes(sizeof(RequestHeader) + body.size());
  const RequestHeader header{.len = static_cast<std::uint32_t>(bytes.size()),
                             .opcode = static_cast<std::uint32_t>(opcode),
                             .unique = 7,
                             .nodeid = 1,
                             .uid = 0,
                             .gid = 0,
                             .pid = 42,
                             .extensionWords = extensionWords,
                             .padding = 0};
  put(bytes, 0, header);
  std::copy(body.begin(), body.end(), bytes.begin() + sizeof(RequestHeader));
  return bytes;
}

TEST(Request, KeepsHeaderBodyAndMessageApart) {
  const Bytes bytes = message(Opcode::lookup, std::string_view("name\0", 5));
  const auto request = Request::parse(bytes);
  ASSERT_TRUE(request);
  EXPECT_EQ(request->opcode(), Opcode::lookup);
  EXPECT_EQ(request->header().unique, 7U);
  EXPECT_EQ(request->header().pid, 42U);
  EXPECT_EQ(request->body().size(), 5U);
  EXPECT_EQ(request->message().size(), bytes.size());
  EXPECT_EQ(request->text(), "name");
}

TEST(Request, RefusesAMessageOfAnotherLengthThanItSays) {
  const Bytes bytes = message(Opcode::getattr, std::string(16, 'x'));
  for (std::size_t length = 0; length < bytes.size(); length++) {
    const Bytes cut(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(length));
    EXPECT_FALSE(Request::parse(cut)) << length;
  }
  Bytes longer = bytes;
  longer.push_back(0);
  EXPECT_FALSE(Request::parse(longer));
  for (const std::uint32_t length : {0U, 39U, 0x7fffffffU, 0xffffffffU}) {
    Bytes altered = bytes;
    put(altered, 0, length);
    EXPECT_FALSE(Request::parse(altered)) << length;
  }
}

TEST(Request, LeavesExtensionsOutOfTheBody) {
  const auto request = Request::parse(message(Opcode::lookup, std::string_view("ab\0extended", 11), 1));
  ASSERT_TRUE(request);
  EXPECT_EQ(request->body().size(), 3U);
  EXPECT_TRUE(Request::parse(message(Opcode::lookup, std::string(16, 'x'), 2)));
  EXPECT_FALSE(Request::parse(message(Opcode::lookup, std::string(16, 'x'), 3)));
  EXPECT_FALSE(Request::parse(message(Opcode::lookup, "", 0xffff)));
}

TEST(Request, GivesATextOnlyWithItsNul) {
  using namespace std::string_view_literals;
  const auto textOf = [](std::string_view body, std::size_t skip) -> std::optional<std::string> {
    const Bytes bytes = message(Opcode::getxattr, body);
    const auto request = Request::parse(bytes);
    const auto text = request->text(skip);
    if (!text) return std::nullopt;
    return std::string(*text);
  };
  EXPECT_EQ(textOf("user.a\0"sv, 0), "user.a");
  EXPECT_EQ(textOf("12345678user.a\0rest"sv, 8), "user.a");
  EXPECT_EQ(textOf("\0"sv, 0), "");
  EXPECT_EQ(textOf("no end"sv, 0), std::nullopt);
  EXPECT_EQ(textOf("ab\0cd"sv, 3), std::nullopt);
  EXPECT_EQ(textOf(""sv, 0), std::nullopt);
  EXPECT_EQ(textOf("a\0"sv, 2), std::nullopt);
  EXPECT_EQ(textOf("a\0"sv, 1000), std::nullopt);
}

TEST(Request, GivesAFixedPartOnlyInWhole) {
  for (std::size_t length = 0; length < sizeof(fuse::ReadIn) + 3; length++) {
    const Bytes bytes = message(Opcode::read, std::string(length, '\1'));
    const auto in = Request::parse(bytes)->fixed<fuse::ReadIn>();
    EXPECT_EQ(in.has_value(), length >= sizeof(fuse::ReadIn)) << length;
    if (in) {
      EXPECT_EQ(in->size, 0x01010101U);
    }
  }
}

TEST(Request, FillsAShortInitWithZeros) {
  for (std::size_t length = 0; length <= sizeof(fuse::InitIn) + 8; length++) {
    const Bytes bytes = message(Opcode::init, std::string(length, '\1'));
    const auto in = Request::parse(bytes)->init();
    EXPECT_EQ(in.has_value(), length >= fuse::INIT_IN_BYTES_MIN) << length;
    if (!in) continue;
    EXPECT_EQ(in->flags, 0x01010101U);
    if (length == fuse::INIT_IN_BYTES_MIN) {
      EXPECT_EQ(in->flags2, 0U);
    }
    EXPECT_EQ(in->flags2 == 0x01010101U, length >= 20) << length;
    EXPECT_EQ(in->unused[10] == 0x01010101U, length >= sizeof(fuse::InitIn)) << length;
  }
}

TEST(Request, SurvivesRandomBytes) {
  std::mt19937 random(3);
  for (int i = 0; i < 20'000; i++) {
    Bytes bytes(random() % 120);
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random());
    if (bytes.size() >= 4) put(bytes, 0, static_cast<std::uint32_t>(bytes.size()));
    const auto request = Request::parse(bytes);
    if (!request) continue;
    EXPECT_LE(request->body().size() + sizeof(RequestHeader), bytes.size());
    const auto text = request->text(random() % 60);
    if (text) {
      EXPECT_LT(text->size(), request->body().size());
    }
    request->init();
    request->fixed<fuse::LseekIn>();
  }
}

}  // namespace
}  // namespace bobbin::test
