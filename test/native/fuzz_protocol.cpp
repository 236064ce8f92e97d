// A kernel that sends what it likes. Each answer is compared with what was asked.
#include <array>

#include "fake_mount.hpp"
#include "fuzz_inputs.hpp"

using namespace bobbin;
using namespace bobbin::test;

namespace {

constexpr std::size_t STEPS_MAX = 64;
// A mount keeps every index that it has had.
constexpr std::size_t INDEXES_MAX = 200;

void compare(const Bytes& message, const Bytes& answer) {
  if (answer.empty()) return;
  expect(answer.size() >= sizeof(fuse::ReplyHeader), "an answer is too short");
  const auto header = get<fuse::ReplyHeader>(answer, 0);
  const auto asked = get<fuse::RequestHeader>(message, 0);
  const auto is = [&](fuse::Opcode opcode) { return asked.opcode == static_cast<std::uint32_t>(opcode); };
  expect(header.len == answer.size(), "an answer is of another length");
  // An interrupt is answered in the place of what it interrupts.
  expect(is(fuse::Opcode::interrupt) || header.unique == asked.unique, "an answer is somebody else's");
  expect(header.error <= 0 && header.error > -512, "an answer is no errno");
  expect(header.error == 0 || header.len == sizeof header, "an error has a body");
  expect(!is(fuse::Opcode::forget) && !is(fuse::Opcode::batchForget), "a forget is answered");
  const std::size_t body = answer.size() - sizeof header;
  if (body == 0) return;
  if (is(fuse::Opcode::read) || is(fuse::Opcode::readdir) || is(fuse::Opcode::readdirplus))
    expect(body <= get<fuse::ReadIn>(message, sizeof asked).size, "more is answered than was asked for");
  if (is(fuse::Opcode::getxattr) || is(fuse::Opcode::listxattr)) {
    const std::size_t size = get<fuse::GetxattrIn>(message, sizeof asked).size;
    expect(body <= std::max(size, sizeof(fuse::GetxattrOut)), "an attribute is too long");
  }
  expect(!is(fuse::Opcode::lookup) || body == sizeof(fuse::EntryOut), "a name's answer is none");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const PackageFolder folder;
  // A mount costs 10 ms, so it is used again: as it was at first, but for the object that an entry with a
  // CRC64NVME was named by.
  static std::array<std::unique_ptr<FakeMount>, 3> mounts;
  static std::array<std::size_t, 3> indexes;
  if (size == 0) return 0;
  constexpr link::OpenMode MODES[] = {link::OpenMode::cached, link::OpenMode::passthrough,
                                      link::OpenMode::none};
  const std::size_t mode = data[0] % 3U;
  if (mounts[mode] == nullptr || indexes[mode] > INDEXES_MAX) {
    mounts[mode] = std::make_unique<FakeMount>(folder, MODES[mode]);
    indexes[mode] = 0;
  }
  FakeMount& mount = *mounts[mode];
  mount.reset();
  std::size_t at = 1;
  for (std::size_t steps = 0; at < size && steps < STEPS_MAX; steps++) {
    const auto step = static_cast<Step>(data[at++] % STEPS);
    switch (step) {
      case Step::message:
      case Step::rawMessage: {
        if (size - at < 2) return 0;
        std::size_t length = data[at] | static_cast<std::size_t>(data[at + 1]) << 8U;
        at += 2;
        length = std::min(length, size - at);
        Bytes message(data + at, data + at + length);
        at += length;
        if (step == Step::message && length >= 4) put(message, 0, static_cast<std::uint32_t>(length));
        compare(message, mount.send(message));
        break;
      }
      case Step::answer:
        mount.answerLast();
        break;
      case Step::evict:
        mount.evict();
        break;
      case Step::index:
        mount.answerIndex();
        indexes[mode]++;
        break;
    }
  }
  return 0;
}
