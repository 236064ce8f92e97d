#include "link/frames.hpp"

#include "link/wire.hpp"

namespace bobbin::link {

namespace {

enum class Kind : std::uint16_t {
  hello = 1,
  mounts = 2,
  ensure = 3,
  cancel = 4,
  evictDone = 5,
  access = 6,
  mounted = 7,
  mountFailed = 8,
  unmountDone = 9,
  closed = 10,
  ended = 11,
  indexDamaged = 12,
  stats = 13,
  asked = 14,
  ready = 32,
  failed = 33,
  working = 34,
  known = 35,
  evictAsk = 36,
  mount = 37,
  unmount = 38,
  index = 39,
  stop = 40,
  statsAsk = 41,
  logged = 42,
  answer = 43,
  serving = 44,
  keep = 45,
};

constexpr std::size_t NAME_BYTES = 33;
constexpr std::size_t OBJECT_BYTES = NAME_BYTES + 32;
constexpr std::uint8_t NAME_TYPES = 3;
constexpr std::uint8_t OPEN_MODES = 4;

// A frame that is being written; its length is filled in at the end.
class FrameWriter : public wire::Writer {
 public:
  explicit FrameWriter(Kind kind) {
    number(std::uint32_t{0});
    number(static_cast<std::uint16_t>(kind));
    number(std::uint16_t{0});
  }
  Buffer finish() {
    const auto payload = static_cast<std::uint32_t>(bytes().size() - FRAME_HEADER_BYTES);
    std::memcpy(bytes().data(), &payload, sizeof payload);
    return std::move(bytes());
  }
};

bool readName(wire::Reader& reader, ObjectName& name) {
  name.type = reader.number<std::uint8_t>();
  const auto bytes = reader.raw(name.bytes.size());
  if (bytes.size() != name.bytes.size() || name.type >= NAME_TYPES) return false;
  std::memcpy(name.bytes.data(), bytes.data(), bytes.size());
  return true;
}

bool readObject(wire::Reader& reader, Object& object) {
  if (!readName(reader, object.name)) return false;
  object.stamp.inode = reader.number<std::uint64_t>();
  object.stamp.size = reader.number<std::uint64_t>();
  object.stamp.mtimeNs = reader.number<std::int64_t>();
  object.stamp.ctimeNs = reader.number<std::int64_t>();
  return reader.isWhole();
}

// Paths and names end up in system calls, where a NUL would cut them.
bool hasNul(const std::string& text) { return text.find('\0') != std::string::npos; }

std::optional<FromDaemon> readMount(wire::Reader& reader) {
  Mount mount;
  mount.request = reader.number<std::uint64_t>();
  mount.uid = reader.number<std::uint32_t>();
  mount.gid = reader.number<std::uint32_t>();
  mount.umask = reader.number<std::uint32_t>();
  const auto allowOther = reader.number<std::uint8_t>();
  const auto openMode = reader.number<std::uint8_t>();
  const auto listAttributes = reader.number<std::uint8_t>();
  mount.timeNs = reader.number<std::int64_t>();
  for (std::string* text :
       {&mount.mountpoint, &mount.source, &mount.index, &mount.manifest, &mount.registry, &mount.package}) {
    *text = reader.text();
    if (hasNul(*text)) return std::nullopt;
  }
  const auto hasMessage = reader.number<std::uint8_t>();
  std::string message = reader.text();
  if (hasMessage == 1) mount.message = std::move(message);
  mount.note = reader.text();
  mount.caller = reader.number<std::uint64_t>();
  if (allowOther > 1 || listAttributes > 1 || hasMessage > 1 || openMode >= OPEN_MODES) return std::nullopt;
  if (mount.umask > (SHOWS_WRITE_BITS | 0777)) return std::nullopt;
  if (mount.mountpoint.empty() || mount.mountpoint[0] != '/') return std::nullopt;
  mount.allowOther = allowOther == 1;
  mount.listAttributes = listAttributes == 1;
  mount.openMode = static_cast<OpenMode>(openMode);
  return mount;
}

std::optional<FromDaemon> readFrame(Kind kind, wire::Reader& reader) {
  switch (kind) {
    case Kind::hello: {
      Hello frame;
      frame.version = reader.number<std::uint32_t>();
      frame.pid = reader.number<std::uint32_t>();
      frame.program = reader.text();
      return frame;
    }
    case Kind::ready: {
      Ready frame;
      frame.request = reader.number<std::uint64_t>();
      if (!readObject(reader, frame.object)) return std::nullopt;
      return frame;
    }
    case Kind::failed: {
      Failed frame;
      frame.request = reader.number<std::uint64_t>();
      frame.error = reader.number<std::uint32_t>();
      // MAX_ERRNO of the kernel's interface is 4095, but FUSE refuses 512 and more.
      if (frame.error == 0 || frame.error >= 512) return std::nullopt;
      return frame;
    }
    case Kind::working: {
      Working frame;
      frame.requests.resize(reader.count(sizeof(std::uint64_t)));
      for (auto& request : frame.requests) request = reader.number<std::uint64_t>();
      return frame;
    }
    case Kind::known: {
      Known frame;
      frame.objects.resize(reader.count(OBJECT_BYTES));
      for (auto& object : frame.objects) {
        if (!readObject(reader, object)) return std::nullopt;
      }
      return frame;
    }
    case Kind::evictAsk: {
      EvictAsk frame;
      frame.request = reader.number<std::uint64_t>();
      frame.names.resize(reader.count(NAME_BYTES));
      for (auto& name : frame.names) {
        if (!readName(reader, name)) return std::nullopt;
      }
      return frame;
    }
    case Kind::mount:
      return readMount(reader);
    case Kind::unmount: {
      Unmount frame;
      frame.request = reader.number<std::uint64_t>();
      frame.mount = reader.number<std::uint32_t>();
      const auto isForced = reader.number<std::uint8_t>();
      if (isForced > 1) return std::nullopt;
      frame.isForced = isForced == 1;
      return frame;
    }
    case Kind::index: {
      Index frame;
      frame.mount = reader.number<std::uint32_t>();
      frame.index = reader.text();
      frame.manifest = reader.text();
      if (hasNul(frame.index) || hasNul(frame.manifest)) return std::nullopt;
      return frame;
    }
    case Kind::stop:
      return Stop{};
    case Kind::statsAsk:
      return StatsAsk{.request = reader.number<std::uint64_t>()};
    case Kind::logged: {
      Logged frame;
      frame.mount = reader.number<std::uint32_t>();
      frame.count = reader.number<std::uint64_t>();
      return frame;
    }
    case Kind::answer: {
      Answer frame;
      frame.caller = reader.number<std::uint64_t>();
      frame.line = reader.text();
      return frame;
    }
    case Kind::serving:
      return Serving{};
    case Kind::keep: {
      Keep frame;
      frame.text = reader.text();
      if (hasNul(frame.text) || frame.text.size() > KEPT_BYTES_MAX) return std::nullopt;
      return frame;
    }
    default:
      return std::nullopt;
  }
}

std::string hexOf(std::span<const std::uint8_t> bytes) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const auto byte : bytes) {
    text += digits[byte >> 4U];
    text += digits[byte & 15U];
  }
  return text;
}

std::string textOf(const ObjectName& name) { return std::to_string(name.type) + "/" + hexOf(name.bytes); }

std::string textOf(const Object& object) {
  return textOf(object.name) + ":" + std::to_string(object.stamp.inode) + ":" +
         std::to_string(object.stamp.size) + ":" + std::to_string(object.stamp.mtimeNs) + ":" +
         std::to_string(object.stamp.ctimeNs);
}

struct Describer {
  std::string operator()(const Hello& frame) const {
    return "hello " + std::to_string(frame.version) + " " + std::to_string(frame.pid) + " " + frame.program;
  }
  std::string operator()(const Ready& frame) const {
    return "ready " + std::to_string(frame.request) + " " + textOf(frame.object);
  }
  std::string operator()(const Failed& frame) const {
    return "failed " + std::to_string(frame.request) + " " + std::to_string(frame.error);
  }
  std::string operator()(const Working& frame) const {
    std::string text = "working";
    for (const auto request : frame.requests) text += " " + std::to_string(request);
    return text;
  }
  std::string operator()(const Known& frame) const {
    std::string text = "known";
    for (const auto& object : frame.objects) text += " " + textOf(object);
    return text;
  }
  std::string operator()(const EvictAsk& frame) const {
    std::string text = "evictAsk " + std::to_string(frame.request);
    for (const auto& name : frame.names) text += " " + textOf(name);
    return text;
  }
  std::string operator()(const Mount& frame) const {
    std::string text = "mount " + std::to_string(frame.request);
    for (const auto number : {frame.uid, frame.gid, frame.umask}) text += " " + std::to_string(number);
    text += frame.allowOther ? " 1 " : " 0 ";
    text += std::to_string(static_cast<int>(frame.openMode)) + (frame.listAttributes ? " 1 " : " 0 ") + std::to_string(frame.timeNs);
    for (const auto& part : {frame.mountpoint, frame.source, frame.index, frame.manifest, frame.registry,
                             frame.package, frame.message.value_or("-"), frame.note})
      text += " " + part;
    return text + " " + std::to_string(frame.caller);
  }
  std::string operator()(const Unmount& frame) const {
    return "unmount " + std::to_string(frame.request) + " " + std::to_string(frame.mount) +
           (frame.isForced ? " 1" : " 0");
  }
  std::string operator()(const Index& frame) const {
    return "index " + std::to_string(frame.mount) + " " + frame.index + " " + frame.manifest;
  }
  std::string operator()(const Stop&) const { return "stop"; }
  std::string operator()(const StatsAsk& frame) const { return "statsAsk " + std::to_string(frame.request); }
  std::string operator()(const Logged& frame) const {
    return "logged " + std::to_string(frame.mount) + " " + std::to_string(frame.count);
  }
  std::string operator()(const Answer& frame) const {
    return "answer " + std::to_string(frame.caller) + " " + frame.line;
  }
  std::string operator()(const Serving&) const { return "serving"; }
  std::string operator()(const Keep& frame) const { return "keep " + frame.text; }
};

}  // namespace

std::optional<FromDaemon> decode(std::uint16_t kind, std::span<const std::uint8_t> payload) {
  wire::Reader reader(payload);
  auto frame = readFrame(static_cast<Kind>(kind), reader);
  if (!reader.isDone()) return std::nullopt;
  return frame;
}

std::string describe(const FromDaemon& frame) { return std::visit(Describer{}, frame); }

Buffer hello(std::uint32_t pid, const std::string& program) {
  FrameWriter frame(Kind::hello);
  frame.number(VERSION).number(pid).text(program);
  return frame.finish();
}

Buffer mounts(std::span<const MountFacts> mounts) {
  FrameWriter frame(Kind::mounts);
  frame.number(static_cast<std::uint32_t>(mounts.size()));
  for (const auto& mount : mounts)
    frame.number(mount.mount).number(mount.openMode).text(mount.reason).text(mount.note);
  return frame.finish();
}

Buffer ensure(std::uint64_t request, std::uint32_t mount, std::uint32_t ino) {
  FrameWriter frame(Kind::ensure);
  frame.number(request).number(mount).number(ino);
  return frame.finish();
}

Buffer cancel(std::uint64_t request) {
  FrameWriter frame(Kind::cancel);
  frame.number(request);
  return frame.finish();
}

Buffer evictDone(std::uint64_t request, std::span<const EvictOutcome> outcomes) {
  FrameWriter frame(Kind::evictDone);
  frame.number(request).number(static_cast<std::uint32_t>(outcomes.size()));
  for (const auto outcome : outcomes) frame.number(outcome);
  return frame.finish();
}

Buffer access(std::uint32_t mount, std::uint64_t first, std::span<const Access> records) {
  FrameWriter frame(Kind::access);
  frame.number(mount).number(first).number(static_cast<std::uint32_t>(records.size()));
  for (const auto& record : records)
    frame.number(record.timeNs).number(record.ino).number(record.kind).number(record.bytes);
  return frame.finish();
}

Buffer mounted(std::uint64_t request, std::uint32_t mount, OpenMode openMode, const std::string& reason) {
  FrameWriter frame(Kind::mounted);
  frame.number(request).number(mount).number(openMode).text(reason);
  return frame.finish();
}

Buffer mountFailed(std::uint64_t request, MountFailure cause, const std::string& message) {
  FrameWriter frame(Kind::mountFailed);
  frame.number(request).number(cause).text(message);
  return frame.finish();
}

Buffer unmountDone(std::uint64_t request, UnmountOutcome outcome, const std::string& message) {
  FrameWriter frame(Kind::unmountDone);
  frame.number(request).number(outcome).text(message);
  return frame.finish();
}

Buffer closed(std::uint32_t mount) {
  FrameWriter frame(Kind::closed);
  frame.number(mount);
  return frame.finish();
}

Buffer ended(std::uint32_t mount) {
  FrameWriter frame(Kind::ended);
  frame.number(mount);
  return frame.finish();
}

Buffer indexDamaged(std::uint32_t mount, const std::string& reason) {
  FrameWriter frame(Kind::indexDamaged);
  frame.number(mount).text(reason);
  return frame.finish();
}

Buffer stats(std::uint64_t request, const Stats& stats) {
  FrameWriter frame(Kind::stats);
  frame.number(request).number(stats.hits).number(stats.waiting).number(stats.openObjects);
  frame.number(stats.openBytes).number(stats.backingIds).number(stats.knownObjects);
  frame.number(stats.unkeptMounts).number(stats.daemonsStarted).text(stats.version).text(stats.notReplaced);
  frame.number(static_cast<std::uint32_t>(stats.said.size()));
  for (const auto& line : stats.said)
    frame.number(line.timeMs).number(std::uint8_t{line.level == Level::error}).text(line.message).text(line.fields);
  return frame.finish();
}

Buffer asked(std::uint64_t caller, std::uint32_t uid, std::uint32_t gid, const std::string& line) {
  FrameWriter frame(Kind::asked);
  frame.number(caller).number(uid).number(gid).text(line);
  return frame.finish();
}

std::optional<FrameReader::Frame> FrameReader::next() {
  if (isBroken_ || pending_.size() - start_ < FRAME_HEADER_BYTES) return std::nullopt;
  wire::Reader reader(std::span<const std::uint8_t>(pending_).subspan(start_));
  const auto bytes = reader.number<std::uint32_t>();
  const auto kind = reader.number<std::uint16_t>();
  const auto reserved = reader.number<std::uint16_t>();
  if (bytes > PAYLOAD_BYTES_MAX || reserved != 0) {
    isBroken_ = true;
    return std::nullopt;
  }
  if (pending_.size() - start_ - FRAME_HEADER_BYTES < bytes) {
    // Room is made once a frame is not whole, not for each frame that is.
    pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(start_));
    start_ = 0;
    return std::nullopt;
  }
  const auto payload = reader.raw(bytes);
  Frame frame{.kind = kind, .payload = Buffer(payload.begin(), payload.end())};
  start_ += FRAME_HEADER_BYTES + bytes;
  if (start_ == pending_.size()) {
    pending_.clear();
    start_ = 0;
  }
  return frame;
}

}  // namespace bobbin::link
