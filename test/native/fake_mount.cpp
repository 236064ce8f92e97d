#include "fake_mount.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>

namespace bobbin::test {

namespace {

constexpr std::size_t CLOSES_MAX = 10'000;

void require(bool isTrue, const char* what) {
  if (!isTrue) {
    std::fprintf(stderr, "fake mount: %s\n", what);
    std::abort();
  }
}

}  // namespace

PackageFolder::PackageFolder() {
  installWakeSignal();
  installMappingGuard();
  std::string pattern = (std::filesystem::temp_directory_path() / "bobbin-native-XXXXXX").string();
  path = ::mkdtemp(pattern.data());
  indexPath = path + "/index";
  manifestPath = path + "/manifest";
  const std::string meta = "{\"directory\":\"meta\"}";
  Bytes manifest(10'000, 'm');
  std::copy(meta.begin(), meta.end(), manifest.begin() + 100);
  Bytes crafted = craftIndex();
  const auto part = std::span<const std::uint8_t>(manifest).subspan(100, meta.size());
  put(crafted, nodeAt(crafted, A_INO - 1) + 28, crc32(part));
  index = sealed(crafted);
  const OwnedIndex owned(index);
  Node node;
  owned.view->node(MISSING_INO - 1, node);
  missing = *objectNameOf(node);
  owned.view->node(OBJECT_INO - 1, node);
  object = *objectNameOf(node);
  const std::string hex = hexOf(object.bytes);
  const std::string folder = path + "/objects/v1/sha256/" + hex.substr(0, 2);
  std::filesystem::create_directories(folder);
  objectPath = folder + "/" + hex;
  write(indexPath, index);
  write(manifestPath, manifest);
  write(objectPath, Bytes(node.size, 'o'));
}

PackageFolder::~PackageFolder() {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

void PackageFolder::write(const std::string& file, std::span<const std::uint8_t> bytes) {
  std::ofstream(file, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
}

link::Stamp PackageFolder::stamp() const {
  struct stat stats {};
  ::stat(objectPath.c_str(), &stats);
  return {.inode = stats.st_ino,
          .size = static_cast<std::uint64_t>(stats.st_size),
          .mtimeNs = stats.st_mtim.tv_sec * 1'000'000'000L + stats.st_mtim.tv_nsec,
          .ctimeNs = stats.st_ctim.tv_sec * 1'000'000'000L + stats.st_ctim.tv_nsec};
}

Bytes requestOf(fuse::Opcode opcode, std::uint64_t nodeid, std::string_view body, std::uint64_t unique) {
  fuse::RequestHeader header{};
  header.len = static_cast<std::uint32_t>(sizeof header + body.size());
  header.opcode = static_cast<std::uint32_t>(opcode);
  header.unique = unique;
  header.nodeid = nodeid;
  Bytes message(sizeof header);
  put(message, 0, header);
  message.insert(message.end(), body.begin(), body.end());
  return message;
}

FakeMount::FakeMount(const PackageFolder& folder, link::OpenMode openMode, unsigned channels)
    : folder_(folder), channels_(channels) {
  shared_.cache.open(folder.path);
  shared_.files.openFolder(folder.path);
  shared_.send = [this](const link::Buffer& frame) {
    const std::lock_guard lock(framesMutex_);
    frames_.push_back(get<std::uint16_t>(frame, 4));
  };
  shared_.onEnded = [](std::uint32_t) {};
  MountRecord record;
  record.id = 1;
  record.openMode = openMode;
  record.request.index = folder.indexPath;
  record.request.manifest = folder.manifestPath;
  record.request.package = "ns/pkg";
  record.request.message = "a message";
  record.request.timeNs = -1;
  std::vector<Fd> files;
  for (Channel& channel : channels_) {
    channel.answers.reset(::memfd_create("channel", MFD_CLOEXEC));
    const std::string path = "/proc/self/fd/" + std::to_string(channel.answers.get());
    files.emplace_back(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    channel.written = files.back().get();
  }
  int error = 0;
  const auto table = OpenTable::create(error);
  require(table != nullptr, "no table");
  std::string reason;
  mount_ = Mount::adopt(std::move(record), std::move(files), Fd(::dup(table->memory())), Fd(), shared_, reason);
  require(mount_ != nullptr, "no mount");
  // It makes the table of first reads; the workers end at once.
  if (openMode == link::OpenMode::none) mount_->start();
}

Bytes FakeMount::send(const Bytes& message, unsigned channel, std::uint32_t attempts) {
  Channel& used = channels_[channel];
  require(::ftruncate(used.written, 0) == 0 && ::lseek(used.written, 0, SEEK_SET) == 0, "no channel");
  mount_->handle(message, channel, attempts);
  struct stat stats {};
  require(::fstat(used.answers.get(), &stats) == 0, "no channel");
  Bytes answer(static_cast<std::size_t>(stats.st_size));
  if (!answer.empty())
    require(::pread(used.answers.get(), answer.data(), answer.size(), 0) == stats.st_size, "no channel");
  return answer;
}

std::vector<Bytes> FakeMount::handleAgain(const std::vector<ParkedRequest>& requests) {
  std::vector<Bytes> answers;
  for (const auto& request : requests) {
    Bytes answer = send(request.message, request.channel, request.attempts);
    if (!answer.empty()) answers.push_back(std::move(answer));
  }
  return answers;
}

std::vector<Bytes> FakeMount::answerLast() {
  const auto questions = shared_.parked.questions();
  if (questions.empty()) return {};
  shared_.known.insert(folder_.object, digestOf(folder_.stamp()));
  mount_->nameObject(questions.back().ino, folder_.object);
  const auto answered = shared_.parked.answer(questions.back().request);
  return answered ? handleAgain(answered->requests) : std::vector<Bytes>{};
}

std::vector<Bytes> FakeMount::answerIndex() {
  std::string reason;
  require(mount_->replaceIndex(folder_.indexPath, folder_.manifestPath, reason), "no index");
  return handleAgain(shared_.parked.answerIndex(1));
}

void FakeMount::evict() {
  shared_.known.erase(folder_.object);
  mount_->letGo(folder_.object);
}

void FakeMount::close(std::uint64_t nodeid, const link::ObjectName& name) {
  for (std::size_t i = 0; i < CLOSES_MAX && mount_->isOpen(name); i++)
    send(requestOf(fuse::Opcode::release, nodeid));
  require(!mount_->isOpen(name), "an object stays open");
}

void FakeMount::reset() {
  mount_->takeAccesses();
  takeFrames();
  shared_.parked.drop(1);
  close(OBJECT_INO, folder_.object);
  close(MISSING_INO, folder_.missing);
  evict();
}

std::vector<std::uint16_t> FakeMount::takeFrames() {
  const std::lock_guard lock(framesMutex_);
  return std::exchange(frames_, {});
}

}  // namespace bobbin::test
