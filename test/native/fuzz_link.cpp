// Any bytes from the daemon, and any state from an earlier bobbin-fuse.
#include <chrono>

#include "fuzz_inputs.hpp"
#include "link/frames.hpp"
#include "session/known_objects.hpp"
#include "session/mount.hpp"
#include "session/parked_misses.hpp"

using namespace bobbin;
using namespace bobbin::test;

namespace {

std::vector<std::string> read(std::span<const std::uint8_t> stream, std::size_t piece) {
  std::vector<std::string> texts;
  link::FrameReader reader;
  for (std::size_t at = 0; at < stream.size(); at += piece) {
    reader.append(stream.subspan(at, std::min(piece, stream.size() - at)));
    while (const auto frame = reader.next()) {
      const auto decoded = link::decode(frame->kind, frame->payload);
      texts.push_back(decoded ? link::describe(*decoded) : "refused");
      if (!decoded) continue;
      if (const auto* failed = std::get_if<link::Failed>(&*decoded))
        expect(failed->error > 0 && failed->error < 512, "an errno is none");
      if (const auto* mount = std::get_if<link::Mount>(&*decoded)) {
        for (const auto* path : {&mount->mountpoint, &mount->source, &mount->index, &mount->manifest})
          expect(path->find('\0') == path->npos, "a path has a NUL");
      }
    }
  }
  if (reader.isBroken()) texts.emplace_back("broken");
  return texts;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size < 2) return 0;
  // A copy that ends where it says, for the sanitizer.
  const Bytes rest(data + 2, data + size);
  switch (static_cast<LinkInput>(data[0] % LINK_INPUTS)) {
    case LinkInput::stream:
      expect(read(rest, 1U + data[1]) == read(rest, rest.size() + 1), "a stream depends on how it is cut");
      break;
    case LinkInput::mount:
      if (const auto record = MountRecord::restore(rest)) {
        const auto saved = record->save();
        const auto again = MountRecord::restore(saved);
        expect(again && again->save() == saved, "a mount is saved as another one");
      }
      break;
    case LinkInput::misses: {
      ParkedMisses misses{std::chrono::seconds(1)};
      if (!misses.restore(rest)) break;
      const auto saved = misses.save();
      ParkedMisses again{std::chrono::seconds(1)};
      expect(again.restore(saved) && again.save() == saved, "misses are saved as others");
      for (const auto& question : again.questions()) again.answer(question.request);
      break;
    }
    case LinkInput::known: {
      KnownObjects known;
      if (!known.restore(rest)) break;
      const auto saved = known.save();
      KnownObjects again;
      expect(again.restore(saved) && again.size() == known.size(), "objects are saved as others");
      break;
    }
  }
  return 0;
}
