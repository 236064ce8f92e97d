// A kernel that sends what it likes, to a mount with an index, a manifest and one object. The connection
// is a file: each answer is read back and compared with what was asked.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "fuzz_inputs.hpp"
#include "session/mount.hpp"

using namespace bobbin;
using namespace bobbin::test;

namespace {

constexpr std::uint32_t OBJECT_POSITION = 2;
constexpr std::uint32_t OTHER_POSITION = 4;
constexpr std::size_t STEPS_MAX = 64;
constexpr std::size_t INDEXES_MAX = 200;

// Made once, and removed at the end.
struct Folder {
  std::string path;
  link::ObjectName object;
  link::ObjectName other;
  link::Stamp stamp;

  Folder() {
    installWakeSignal();
    std::string pattern = (std::filesystem::temp_directory_path() / "bobbin-fuzz-XXXXXX").string();
    path = ::mkdtemp(pattern.data());
    std::string manifest(10'000, 'm');
    manifest.replace(100, 20, "{\"directory\":\"meta\"}");
    Bytes index = craftIndex();
    const auto metaCrc = crc32({reinterpret_cast<const std::uint8_t*>(manifest.data()) + 100, 20});
    put(index, nodeAt(index, 1) + 28, metaCrc);
    const OwnedIndex owned(sealed(index));
    Node node;
    owned.view->node(OBJECT_POSITION, node);
    object = *objectNameOf(node);
    owned.view->node(OTHER_POSITION, node);
    other = *objectNameOf(node);
    owned.view->node(OBJECT_POSITION, node);
    const std::string hex = hexOf(object.bytes);
    const std::string folder = path + "/objects/v1/sha256/" + hex.substr(0, 2);
    std::filesystem::create_directories(folder);
    write(path + "/index", owned.bytes.data(), owned.bytes.size());
    write(path + "/manifest", manifest.data(), manifest.size());
    const std::string bytes(node.size, 'o');
    write(folder + "/" + hex, bytes.data(), bytes.size());
    struct stat stats {};
    ::stat((folder + "/" + hex).c_str(), &stats);
    stamp = {.inode = stats.st_ino,
             .size = static_cast<std::uint64_t>(stats.st_size),
             .mtimeNs = stats.st_mtim.tv_sec * 1'000'000'000L + stats.st_mtim.tv_nsec,
             .ctimeNs = stats.st_ctim.tv_sec * 1'000'000'000L + stats.st_ctim.tv_nsec};
  }
  ~Folder() {
    std::error_code ignored;
    std::filesystem::remove_all(path, ignored);
  }

  static void write(const std::string& file, const void* bytes, std::size_t count) {
    std::ofstream(file, std::ios::binary)
        .write(static_cast<const char*>(bytes), static_cast<std::streamsize>(count));
  }
};

class Session {
 public:
  Session(const Folder& folder, link::OpenMode openMode) : folder_(folder) {
    shared_.files.openFolder(folder.path);
    shared_.send = [](const link::Buffer&) {};
    shared_.onEnded = [](std::uint32_t) {};
    MountRecord record;
    record.id = 1;
    record.openMode = openMode;
    record.request.index = folder.path + "/index";
    record.request.manifest = folder.path + "/manifest";
    record.request.package = "ns/pkg";
    record.request.message = "a message";
    record.request.timeNs = -1;
    answers_.reset(::memfd_create("channel", MFD_CLOEXEC));
    // The worker that starts below cannot read from it, and ends.
    const std::string path = "/proc/self/fd/" + std::to_string(answers_.get());
    Fd channel(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    channel_ = channel.get();
    std::vector<Fd> channels;
    channels.push_back(std::move(channel));
    int error = 0;
    Fd table(::dup(OpenTable::create(error)->memory()));
    std::string reason;
    mount_ = Mount::adopt(std::move(record), std::move(channels), std::move(table), shared_, reason);
    expect(mount_ != nullptr, "the mount cannot be made");
    if (openMode == link::OpenMode::none) mount_->start();
  }

  void send(const Bytes& message, std::uint32_t attempts = 0) {
    expect(::ftruncate(channel_, 0) == 0 && ::lseek(channel_, 0, SEEK_SET) == 0, "no channel");
    mount_->handle(message, 0, attempts, scratch_);
    struct stat stats {};
    expect(::fstat(answers_.get(), &stats) == 0, "no channel");
    Bytes answer(static_cast<std::size_t>(stats.st_size));
    if (answer.empty()) return;
    expect(::pread(answers_.get(), answer.data(), answer.size(), 0) == stats.st_size, "no channel");
    compare(message, answer);
  }

  void answerLast() {
    const auto questions = shared_.parked.questions();
    if (questions.empty()) return;
    shared_.known.insert(folder_.object, digestOf(folder_.stamp));
    mount_->nameObject(questions.back().ino, folder_.object);
    const auto answered = shared_.parked.answer(questions.back().request);
    if (!answered) return;
    for (const auto& request : answered->requests) send(request.message, request.attempts);
  }

  void evict() {
    shared_.known.erase(folder_.object);
    mount_->letGo(folder_.object);
  }

  void makeIndexAgain() {
    std::string reason;
    expect(mount_->replaceIndex(folder_.path + "/index", folder_.path + "/manifest", reason), "no index");
    indexes_++;
    for (const auto& request : shared_.parked.answerIndex(1)) send(request.message, request.attempts);
  }

  // A mount keeps every index that it has had.
  bool isUsedUp() const { return indexes_ > INDEXES_MAX; }

  // A mount costs 10 ms, so it is used again: as it was at first, but for the object that an entry with
  // a CRC64NVME was named by.
  void reset() {
    mount_->takeAccesses();
    shared_.parked.drop(1);
    close(OBJECT_POSITION, folder_.object);
    close(OTHER_POSITION, folder_.other);
    evict();
  }

 private:
  void close(std::uint32_t position, const link::ObjectName& name) {
    fuse::RequestHeader header{};
    header.len = sizeof header;
    header.opcode = static_cast<std::uint32_t>(fuse::Opcode::release);
    header.nodeid = position + 1;
    Bytes message(sizeof header);
    put(message, 0, header);
    for (std::size_t i = 0; i < STEPS_MAX && mount_->isOpen(name); i++) send(message);
    expect(!mount_->isOpen(name), "an object stays open");
  }

  static void compare(const Bytes& message, const Bytes& answer) {
    expect(answer.size() >= sizeof(fuse::ReplyHeader), "an answer is too short");
    const auto header = get<fuse::ReplyHeader>(answer, 0);
    const auto asked = get<fuse::RequestHeader>(message, 0);
    expect(header.len == answer.size(), "an answer is of another length");
    // An interrupt is answered in the place of what it interrupts.
    const bool isInterrupt = asked.opcode == static_cast<std::uint32_t>(fuse::Opcode::interrupt);
    expect(isInterrupt || header.unique == asked.unique, "an answer is somebody else's");
    expect(header.error <= 0 && header.error > -512, "an answer is no errno");
    expect(header.error == 0 || header.len == sizeof header, "an error has a body");
    const std::size_t body = answer.size() - sizeof header;
    const auto bodyOf = [&](fuse::Opcode opcode) {
      return header.error == 0 && asked.opcode == static_cast<std::uint32_t>(opcode) ? body : 0;
    };
    expect(asked.opcode != static_cast<std::uint32_t>(fuse::Opcode::forget) &&
               asked.opcode != static_cast<std::uint32_t>(fuse::Opcode::batchForget),
           "a forget is answered");
    for (const auto opcode : {fuse::Opcode::read, fuse::Opcode::readdir, fuse::Opcode::readdirplus}) {
      if (bodyOf(opcode) == 0) continue;
      const auto in = get<fuse::ReadIn>(message, sizeof asked);
      expect(bodyOf(opcode) <= in.size, "more is answered than was asked for");
    }
    for (const auto opcode : {fuse::Opcode::getxattr, fuse::Opcode::listxattr}) {
      if (bodyOf(opcode) == 0) continue;
      const auto in = get<fuse::GetxattrIn>(message, sizeof asked);
      expect(body <= std::max<std::size_t>(in.size, sizeof(fuse::GetxattrOut)), "an attribute is too long");
    }
    expect(bodyOf(fuse::Opcode::lookup) == 0 || body == sizeof(fuse::EntryOut), "a name's answer is none");
  }

  const Folder& folder_;
  Shared shared_{std::chrono::seconds(60)};
  Scratch scratch_;
  // The same file twice: what the mount writes to, and what it is read from.
  int channel_ = -1;
  Fd answers_;
  std::size_t indexes_ = 0;
  std::unique_ptr<Mount> mount_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Folder folder;
  if (size == 0) return 0;
  constexpr link::OpenMode MODES[] = {link::OpenMode::cached, link::OpenMode::passthrough,
                                      link::OpenMode::none};
  static std::array<std::unique_ptr<Session>, 3> sessions;
  const std::size_t mode = data[0] % 3U;
  if (sessions[mode] == nullptr || sessions[mode]->isUsedUp())
    sessions[mode] = std::make_unique<Session>(folder, MODES[mode]);
  Session& session = *sessions[mode];
  session.reset();
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
        session.send(message);
        break;
      }
      case Step::answer:
        session.answerLast();
        break;
      case Step::evict:
        session.evict();
        break;
      case Step::index:
        session.makeIndexAgain();
        break;
    }
  }
  return 0;
}
