// How the bytes of a fuzzer's input are meant. fuzz_seeds.cpp writes what fuzz_*.cpp read.
#pragma once

#include <algorithm>
#include <cstdio>

#include "support.hpp"

namespace bobbin::test {

// Of an index's header nothing is in use beyond this.
inline constexpr std::size_t COMPACT_HEADER_BYTES = 240;

// An index without the empty part of its header: what a fuzzer alters should mean something.
inline Bytes compactIndex(const Bytes& headerAndBody) {
  Bytes compact(headerAndBody.begin(), headerAndBody.begin() + COMPACT_HEADER_BYTES);
  compact.insert(compact.end(), headerAndBody.begin() + HEADER_BYTES, headerAndBody.end());
  return compact;
}

// Header and body, to be sealed.
inline Bytes expandIndex(std::span<const std::uint8_t> compact) {
  const auto header = compact.first(std::min(compact.size(), COMPACT_HEADER_BYTES));
  const auto body = compact.subspan(header.size());
  Bytes index(HEADER_BYTES);
  std::copy(header.begin(), header.end(), index.begin());
  index.insert(index.end(), body.begin(), body.end());
  return index;
}

// What fuzz_protocol does next: a byte that says what, and a kernel's message as u16 length and bytes,
// whose header gets the right length.
enum class Step : std::uint8_t {
  message = 0,
  // As it is: its length may be wrong.
  rawMessage = 1,
  // The daemon has brought what was asked for last.
  answer = 2,
  // The object is taken away, if nobody has it open.
  evict = 3,
  // It has made the index again.
  index = 4,
};
inline constexpr std::uint8_t STEPS = 5;

// What fuzz_link does with an input, by its first byte.
enum class LinkInput : std::uint8_t {
  // Frames, in pieces of as many bytes as the second byte says.
  stream = 0,
  // What one bobbin-fuse leaves to the next.
  mount = 1,
  misses = 2,
  known = 3,
};
inline constexpr std::uint8_t LINK_INPUTS = 4;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "fuzz: %s\n", what);
  __builtin_trap();
}

inline void expect(bool isTrue, const char* what) {
  if (!isTrue) fail(what);
}

}  // namespace bobbin::test
