// The link, from bobbin-fuse's side: it is the privileged one. link-frames.test.ts is the other side.
#include "link/frames.hpp"

#include <gtest/gtest.h>

#include <fstream>
#include <random>

#include "support.hpp"

namespace bobbin::test {
namespace {

using namespace link;

struct Vector {
  std::string from;
  Bytes frame;
  std::string text;
};

std::vector<Vector> readVectors(std::string_view from) {
  std::vector<Vector> vectors;
  std::ifstream stream(BOBBIN_LINK_VECTORS);
  for (std::string line; std::getline(stream, line);) {
    if (!line.starts_with(from)) continue;
    const auto hexAt = line.find(' ') + 1;
    const auto textAt = line.find(' ', hexAt) + 1;
    Vector& vector = vectors.emplace_back();
    vector.from = from;
    for (std::size_t i = hexAt; i + 1 < textAt; i += 2)
      vector.frame.push_back(static_cast<std::uint8_t>(std::stoi(line.substr(i, 2), nullptr, 16)));
    vector.text = line.substr(textAt);
  }
  return vectors;
}

std::vector<std::string> describeAll(std::span<const std::uint8_t> stream, std::size_t piece) {
  std::vector<std::string> texts;
  FrameReader reader;
  for (std::size_t at = 0; at < stream.size(); at += piece) {
    reader.append(stream.subspan(at, std::min(piece, stream.size() - at)));
    while (const auto frame = reader.next()) {
      const auto decoded = decode(frame->kind, frame->payload);
      texts.push_back(decoded ? describe(*decoded) : "refused");
    }
  }
  if (reader.isBroken()) texts.push_back("broken");
  return texts;
}

std::uint16_t kindOf(const Bytes& frame) { return get<std::uint16_t>(frame, 4); }
std::span<const std::uint8_t> payloadOf(const Bytes& frame) {
  return std::span(frame).subspan(FRAME_HEADER_BYTES);
}

// A frame of the daemon with any payload.
Bytes frameOf(std::uint16_t kind, std::span<const std::uint8_t> payload) {
  Bytes frame(FRAME_HEADER_BYTES);
  put(frame, 0, static_cast<std::uint32_t>(payload.size()));
  put(frame, 4, kind);
  frame.insert(frame.end(), payload.begin(), payload.end());
  return frame;
}

TEST(Frames, OfTheDaemonAreReadAsTheVectorsSay) {
  const auto vectors = readVectors("daemon ");
  ASSERT_GE(vectors.size(), 12U);
  for (const auto& [from, frame, text] : vectors) {
    const auto decoded = decode(kindOf(frame), payloadOf(frame));
    ASSERT_TRUE(decoded) << text;
    EXPECT_EQ(describe(*decoded), text);
  }
}

TEST(Frames, ToTheDaemonAreWrittenAsTheVectorsSay) {
  const MountFacts mountFacts[] = {
      {.mount = 1, .openMode = OpenMode::passthrough, .reason = "", .note = "n1"},
      {.mount = 2, .openMode = OpenMode::cached, .reason = "no passthrough", .note = "\u00df"}};
  const EvictOutcome outcomes[] = {EvictOutcome::gone, EvictOutcome::open, EvictOutcome::used};
  const Access records[] = {
      {.timeNs = 1'700'000'000'123'456'789, .ino = 5, .kind = AccessKind::open, .bytes = 3000},
      {.timeNs = 1'700'000'000'123'456'790, .ino = 6, .kind = AccessKind::firstRead, .bytes = 1ULL << 40U},
      {.timeNs = 1'700'000'000'123'456'791, .ino = 0, .kind = AccessKind::lost, .bytes = 7}};
  const Stats counted{.hits = 1,
                      .waiting = 2,
                      .openObjects = 3,
                      .openBytes = 1ULL << 40U,
                      .backingIds = 5,
                      .knownObjects = 6,
                      .unkeptMounts = 7,
                      .daemonsStarted = 8,
                      .version = "0.1.0",
                      .notReplaced = "it ended",
                      .said = {{.timeMs = 1'700'000'000'123, .level = Level::error, .message = "failed", .fields = R"("a":"b")"},
                               {.timeMs = 9, .level = Level::warn, .message = "odd", .fields = ""}}};
  const Bytes written[] = {
      hello(99, "bobbin-fuse"),
      mounts(mountFacts),
      ensure(1, 2, 3),
      cancel((1ULL << 53U) - 1),
      evictDone(8, outcomes),
      access(1, 4, records),
      mounted(9, 1, OpenMode::none, "asked for"),
      mountFailed(9, MountFailure::mountpoint, "it is no folder"),
      unmountDone(11, UnmountOutcome::busy, "in use"),
      unmountDone(11, UnmountOutcome::covered, "in use"),
      closed(3),
      ended(3),
      indexDamaged(3, "a block"),
      stats(12, counted),
      asked(7, 1000, 100, "{\"mount\":{}}"),
  };
  const auto vectors = readVectors("fuse ");
  ASSERT_EQ(vectors.size(), std::size(written));
  for (std::size_t i = 0; i < vectors.size(); i++)
    EXPECT_EQ(hexOf(written[i]), hexOf(vectors[i].frame)) << vectors[i].text;
}

TEST(Frames, ThatAreCutOrTooLongAreRefused) {
  for (const auto& [from, frame, text] : readVectors("daemon ")) {
    const auto payload = payloadOf(frame);
    for (std::size_t length = 0; length < payload.size(); length++) {
      // A copy that ends where it says, for the sanitizer.
      const Bytes cut(payload.begin(), payload.begin() + static_cast<std::ptrdiff_t>(length));
      EXPECT_FALSE(decode(kindOf(frame), cut)) << text << " cut to " << length;
    }
    Bytes longer(payload.begin(), payload.end());
    longer.push_back(0);
    EXPECT_FALSE(decode(kindOf(frame), longer)) << text;
  }
}

TEST(Frames, OfAnUnknownKindOrOfOurOwnAreRefused) {
  for (std::uint32_t kind = 0; kind <= 0xffff; kind++) {
    const bool isEmptyFrame = kind == 40 || kind == 44;
    EXPECT_EQ(decode(static_cast<std::uint16_t>(kind), {}).has_value(), isEmptyFrame) << kind;
  }
  for (const auto& [from, frame, text] : readVectors("fuse ")) {
    const bool isBoth = kindOf(frame) == 1;
    EXPECT_EQ(decode(kindOf(frame), payloadOf(frame)).has_value(), isBoth) << text;
  }
}

TEST(Frames, WithACountBeyondTheirBytesAreRefusedWithoutMemoryForIt) {
  Bytes payload(4);
  for (const std::uint32_t count : {1U, 0x10000U, 0x7fffffffU, 0xffffffffU}) {
    put(payload, 0, count);
    EXPECT_FALSE(decode(34, payload));
    EXPECT_FALSE(decode(35, payload));
    Bytes ask(12);
    put(ask, 8, count);
    EXPECT_FALSE(decode(36, ask));
    // The length of a text.
    Bytes greeting(12);
    put(greeting, 8, count);
    EXPECT_FALSE(decode(1, greeting));
  }
}

TEST(Frames, WithAValueOutOfItsRangeAreRefused) {
  const auto vectors = readVectors("daemon ");
  const auto altered = [&](std::string_view start, std::size_t at, std::uint8_t value) {
    for (const auto& vector : vectors) {
      if (!vector.text.starts_with(start)) continue;
      Bytes payload(payloadOf(vector.frame).begin(), payloadOf(vector.frame).end());
      payload.at(at) = value;
      return decode(kindOf(vector.frame), payload).has_value();
    }
    ADD_FAILURE() << start;
    return false;
  };
  EXPECT_TRUE(altered("ready ", 8, 2));
  EXPECT_FALSE(altered("ready ", 8, 3)) << "a type of object";
  EXPECT_FALSE(altered("known ", 4, 255)) << "a type of object";
  EXPECT_FALSE(altered("evictAsk ", 12, 3)) << "a type of object";
  EXPECT_FALSE(altered("failed ", 8, 0)) << "no error";
  EXPECT_FALSE(altered("failed ", 9, 2)) << "an errno of 512 and more";
  EXPECT_FALSE(altered("failed ", 11, 128)) << "a negative errno";
  EXPECT_FALSE(altered("unmount ", 12, 2)) << "neither true nor false";
  EXPECT_FALSE(altered("mount ", 20, 2)) << "neither true nor false";
  EXPECT_FALSE(altered("mount ", 21, 4)) << "an open mode";
  EXPECT_FALSE(altered("mount ", 17, 4)) << "an umask over 01777";
  EXPECT_FALSE(altered("mount ", 34, 'm')) << "a mountpoint that is not absolute";
  EXPECT_FALSE(altered("mount ", 36, 0)) << "a NUL in a path";
  EXPECT_FALSE(altered("index ", 10, 0)) << "a NUL in a path";
}

TEST(FrameReader, CutsAStreamTheSameWayInPiecesOfAnySize) {
  Bytes stream;
  std::vector<std::string> expected;
  for (const auto& [from, frame, text] : readVectors("daemon ")) {
    stream.insert(stream.end(), frame.begin(), frame.end());
    expected.push_back(text);
  }
  for (std::size_t piece = 1; piece <= stream.size(); piece++)
    ASSERT_EQ(describeAll(stream, piece), expected) << piece;
}

TEST(FrameReader, GivesUpAStreamThatCannotBeFrames) {
  Bytes tooLong(FRAME_HEADER_BYTES);
  put(tooLong, 0, PAYLOAD_BYTES_MAX + 1);
  put(tooLong, 4, std::uint16_t{40});
  EXPECT_EQ(describeAll(tooLong, 3), std::vector<std::string>{"broken"});
  put(tooLong, 0, ~std::uint32_t{0});
  EXPECT_EQ(describeAll(tooLong, 8), std::vector<std::string>{"broken"});
  Bytes reserved(FRAME_HEADER_BYTES);
  put(reserved, 4, std::uint16_t{40});
  put(reserved, 6, std::uint16_t{1});
  EXPECT_EQ(describeAll(reserved, 1), std::vector<std::string>{"broken"});
  // Nothing that follows is read any more.
  reserved.resize(2 * FRAME_HEADER_BYTES);
  put(reserved, 12, std::uint16_t{40});
  EXPECT_EQ(describeAll(reserved, 16), std::vector<std::string>{"broken"});
}

TEST(FrameReader, TakesTheLongestPayloadAndKeepsTheRestOfAFrame) {
  FrameReader reader;
  const Bytes frame = frameOf(34, Bytes(PAYLOAD_BYTES_MAX));
  reader.append(std::span(frame).first(frame.size() - 1));
  EXPECT_FALSE(reader.next());
  EXPECT_FALSE(reader.isBroken());
  EXPECT_EQ(reader.rest().size(), frame.size() - 1);
  reader.append(std::span(frame).last(1));
  const auto read = reader.next();
  ASSERT_TRUE(read);
  EXPECT_EQ(read->payload.size(), PAYLOAD_BYTES_MAX);
  EXPECT_EQ(reader.rest().size(), 0U);
}

TEST(FrameReader, SurvivesRandomBytes) {
  std::mt19937 random(4);
  for (int i = 0; i < 20'000; i++) {
    Bytes payload(random() % 200);
    for (auto& byte : payload) byte = static_cast<std::uint8_t>(random() % 3 == 0 ? random() : 0);
    const auto kind = static_cast<std::uint16_t>(random() % 45);
    if (const auto decoded = decode(kind, payload)) {
      EXPECT_NE(describe(*decoded), "");
    }
    Bytes stream = frameOf(kind, payload);
    stream.resize(random() % (stream.size() + 1));
    describeAll(stream, 1 + random() % 40);
  }
}

}  // namespace
}  // namespace bobbin::test
