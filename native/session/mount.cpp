#include "session/mount.hpp"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>

#include <csignal>
#include <cstring>
#include <utility>

#include "link/wire.hpp"
#include "session/privileges.hpp"

namespace bobbin {

namespace {

constexpr std::size_t REQUEST_BYTES = 65'536;
constexpr int INIT_TIMEOUT_MS = 10'000;
// Ends the wait of a worker for its next request.
constexpr int WAKE_SIGNAL = SIGUSR1;

}  // namespace

void installWakeSignal() {
  struct sigaction action {};
  // Without SA_RESTART: the read comes back with EINTR.
  action.sa_handler = [](int) {};
  ::sigemptyset(&action.sa_mask);
  ::sigaction(WAKE_SIGNAL, &action, nullptr);
}

Mount::Mount(MountRecord record, Shared& shared) : record_(std::move(record)), shared_(shared) {
  const link::Mount& asked = record_.request;
  options_ = {.uid = asked.uid,
              .gid = asked.gid,
              .umask = asked.umask & 0777,
              .showsWriteBits = (asked.umask & link::SHOWS_WRITE_BITS) != 0,
              .allowOther = asked.allowOther,
              .timeNs = asked.timeNs,
              .registry = asked.registry,
              .package = asked.package,
              .message = asked.message,
              .listAttributes = asked.listAttributes};
}

std::unique_ptr<Mount> Mount::create(std::uint32_t id, link::Mount request, const MountOwner& owner, Shared& shared,
                                     MountFailed& failed) {
  MountRecord record;
  record.id = id;
  record.request = std::move(request);
  std::unique_ptr<Mount> mount(new Mount(std::move(record), shared));
  std::string reason;
  const link::Mount& asked = mount->record_.request;
  if (!mount->replaceIndex(asked.index, asked.manifest, reason)) {
    failed = {link::MountFailure::other, reason};
    return nullptr;
  }
  int error = 0;
  mount->openTable_ = OpenTable::create(error);
  if (mount->openTable_ == nullptr) {
    failed = {link::MountFailure::other, "memory for the table of open files: " + errorText(error)};
    return nullptr;
  }
  Fd connection;
  auto attachment = attach(asked, owner, shared.roots, connection, failed);
  if (!attachment) return nullptr;
  mount->attachment_ = std::move(*attachment);
  mount->record_.mountId = mount->attachment_.mountId;
  mount->record_.device = mount->attachment_.device;
  mount->channels_.push_back(std::move(connection));
  if (mount->begin(failed)) return mount;
  mount->unmount(true);
  return nullptr;
}

bool Mount::begin(MountFailed& failed) {
  if (!answerInit(failed) || !chooseMode(failed)) return false;
  addClones();
  readAhead();
  return true;
}

std::unique_ptr<Mount> Mount::adopt(MountRecord record, std::vector<Fd> channels, Fd openTable, Fd folder,
                                    Shared& shared, std::string& reason) {
  std::unique_ptr<Mount> mount(new Mount(std::move(record), shared));
  mount->channels_ = std::move(channels);
  mount->attachment_ = {
      .folder = std::move(folder), .mountId = mount->record_.mountId, .device = mount->record_.device};
  int error = 0;
  mount->openTable_ = OpenTable::adopt(std::move(openTable), error);
  if (mount->openTable_ == nullptr) {
    reason = "the table of open files: " + errorText(error);
    return nullptr;
  }
  const link::Mount& asked = mount->record_.request;
  if (!mount->replaceIndex(asked.index, asked.manifest, reason)) return nullptr;
  return mount;
}

Mount::~Mount() {
  pause();
  shared_.parked.drop(record_.id);
}

bool Mount::answerInit(MountFailed& failed) {
  const int device = channels_[0].get();
  const ReplyBuffers::Borrowed buffer(shared_.buffers);
  const auto in = std::make_unique_for_overwrite<std::uint8_t[]>(REQUEST_BYTES);
  for (;;) {
    pollfd waiting{.fd = device, .events = POLLIN, .revents = 0};
    const int ready = ::poll(&waiting, 1, INIT_TIMEOUT_MS);
    if (ready < 0 && errno == EINTR) continue;
    if (ready <= 0) {
      failed = {link::MountFailure::unavailable,
                "the kernel did not answer the mount on " + record_.request.mountpoint + " within 10 s"};
      return false;
    }
    const auto n = ::read(device, in.get(), REQUEST_BYTES);
    if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT)) continue;
    if (n < 0) {
      failed = {link::MountFailure::unavailable, "reading from /dev/fuse: " + errorText(errno)};
      return false;
    }
    const auto request = fuse::Request::parse({in.get(), static_cast<std::size_t>(n)});
    const auto init = request && request->opcode() == fuse::Opcode::init ? request->init() : std::nullopt;
    if (!init) {
      failed = {link::MountFailure::unavailable, "the kernel's first request is not INIT"};
      return false;
    }
    const bool wantsPassthrough = (record_.request.openMode == link::OpenMode::automatic ||
                                   record_.request.openMode == link::OpenMode::passthrough) &&
                                  !shared_.withoutPassthrough && hasCapability(Capability::sysAdmin);
    const fuse::Wishes wishes{.passthrough = wantsPassthrough,
                              .noOpen = record_.request.openMode == link::OpenMode::none,
                              .resend = !shared_.withoutResend};
    fuse::InitOut out{};
    std::string reason;
    const auto agreement = fuse::negotiate(*init, wishes, out, reason);
    Reply reply(buffer.bytes());
    if (agreement) reply.put(out);
    const auto message = reply.finish(request->header().unique, agreement ? 0 : EPROTO);
    const bool isWritten =
        ::write(device, message.data(), message.size()) == static_cast<ssize_t>(message.size());
    if (!agreement || !isWritten) {
      failed = {link::MountFailure::unavailable, agreement ? "answering INIT: " + errorText(errno) : reason};
      return false;
    }
    record_.agreement = *agreement;
    return true;
  }
}

int Mount::tryPassthrough() {
  // The index lies on the cache's filesystem, and is there.
  int error = 0;
  const Fd file = shared_.cache.openFile(record_.request.index, error);
  if (!file) return error;
  const fuse::BackingMap map{.fd = file.get(), .flags = 0, .padding = 0};
  const int id = ::ioctl(channels_[0].get(), fuse::IOCTL_BACKING_OPEN, &map);
  if (id < 0) return errno;
  closeBacking(id);
  return 0;
}

bool Mount::chooseMode(MountFailed& failed) {
  const link::OpenMode wish = record_.request.openMode;
  record_.openMode = wish == link::OpenMode::automatic ? link::OpenMode::passthrough : wish;
  if (record_.openMode == link::OpenMode::none && !record_.agreement.has(fuse::init::NO_OPEN_SUPPORT)) {
    failed = {link::MountFailure::unavailable, "this kernel cannot do without opens: use --open-mode cached"};
    return false;
  }
  if (record_.openMode == link::OpenMode::passthrough) {
    if (shared_.withoutPassthrough) {
      record_.reason = "passthrough is switched off (BOBBIN_FUSE_WITHOUT)";
    } else if (!hasCapability(Capability::sysAdmin)) {
      record_.reason = "passthrough needs CAP_SYS_ADMIN: run the daemon as root or with that capability";
    } else if (!record_.agreement.has(fuse::init::PASSTHROUGH)) {
      record_.reason = "passthrough needs Linux 6.9 or newer (this kernel speaks FUSE 7." +
                       std::to_string(record_.agreement.minor) + ")";
    } else if (const int error = tryPassthrough(); error == EPERM) {
      record_.reason = "passthrough needs CAP_SYS_ADMIN in the machine's own user namespace";
    } else if (error != 0) {
      record_.reason = "the cache's filesystem is not fit for passthrough: " + errorText(error);
    }
    if (!record_.reason.empty() && wish == link::OpenMode::passthrough) {
      failed = {link::MountFailure::unavailable, record_.reason + "; use --open-mode auto"};
      return false;
    }
    if (!record_.reason.empty()) record_.openMode = link::OpenMode::cached;
  }
  return true;
}

void Mount::addClones() {
  for (unsigned i = 1; i < shared_.threads; i++) {
    Fd clone(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
    std::uint32_t master = static_cast<std::uint32_t>(channels_[0].get());
    // Fewer will do.
    if (!clone || ::ioctl(clone.get(), fuse::IOCTL_CLONE, &master) != 0) break;
    channels_.push_back(std::move(clone));
  }
}

// The kernel reads 128 KiB ahead unless it is told otherwise; where we may not, that will do.
void Mount::readAhead() const {
  const std::string path = "/sys/class/bdi/" + record_.device + "/read_ahead_kb";
  const Fd file(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
  const std::string text = std::to_string(fuse::READ_BYTES_MAX / 1024);
  if (file) [[maybe_unused]]
    const auto written = ::write(file.get(), text.data(), text.size());
}

void Mount::start() {
  isPausing_ = false;
  if (record_.openMode == link::OpenMode::none && wasRead_ == nullptr) {
    const std::size_t words = (std::size_t{index_->view().facts().nodes} + 63) / 64;
    wasRead_ = std::make_unique<std::atomic<std::uint64_t>[]>(words);
  }
  for (std::uint32_t channel = 0; channel < channels_.size(); channel++) {
    working_++;
    try {
      workers_.emplace_back([this, channel] { work(channel); });
    } catch (const std::exception& error) {
      working_--;
      // A clone that nobody reads from harms nobody; without any worker, nothing is served.
      log(Level::error, "a thread cannot be started", field("error", error.what()));
      if (workers_.empty()) throw;
    }
  }
}

void Mount::pause() {
  isPausing_ = true;
  // A signal that arrives before the worker's read has begun is lost, hence again and again.
  while (working_ > 0) {
    for (auto& worker : workers_) ::pthread_kill(worker.native_handle(), WAKE_SIGNAL);
    ::usleep(500);
  }
  for (auto& worker : workers_) worker.join();
  workers_.clear();
}

bool Mount::isMounted(const std::vector<MountedAt>& table) const {
  const auto mounted = mountWithId(table, record_.mountId);
  return mounted && mounted->device == record_.device;
}

void Mount::hasLeft() {
  record_.isClosed = true;
  attachment_.folder.reset();
}

void Mount::resend() {
  if (!record_.agreement.has(fuse::init::HAS_RESEND)) return;
  const fuse::ReplyHeader notice{.len = sizeof notice, .error = fuse::NOTIFY_RESEND, .unique = 0};
  if (::write(channels_[0].get(), &notice, sizeof notice) < 0)
    log(Level::warn, "the kernel does not send requests again", field("error", errorText(errno)));
}

void Mount::work(std::uint32_t channel) {
  const int fd = channels_[channel].get();
  // Not set to anything: of memory that was never written to, there is none.
  const auto in = std::make_unique_for_overwrite<std::uint8_t[]>(REQUEST_BYTES);
  while (!isPausing_) {
    const auto n = ::read(fd, in.get(), REQUEST_BYTES);
    if (n > 0) {
      handle({in.get(), static_cast<std::size_t>(n)}, channel, 0);
      continue;
    }
    // ENOENT: it was interrupted while we took it.
    if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT)) continue;
    if (n < 0 && errno != ENODEV && errno != ECONNABORTED)
      log(Level::error, "reading from /dev/fuse failed", field("error", errorText(errno)));
    hasEnded_ = true;
    break;
  }
  // Before the count goes down: from then on we may be gone.
  if (hasEnded_) shared_.onEnded(record_.id);
  working_--;
}

bool Mount::replaceIndex(const std::string& indexPath, const std::string& manifestPath, std::string& reason) {
  auto index = IndexFile::open(shared_.cache, indexPath, manifestPath, reason);
  if (index == nullptr) return false;
  const IndexFile* current = index_.get();
  // Positions and node ids are those of the tree, so another tree must never take their place.
  if (current != nullptr && (current->view().facts().nodes != index->view().facts().nodes ||
                             current->view().facts().topHash != index->view().facts().topHash)) {
    reason = "it is of another package";
    return false;
  }
  record_.request.index = indexPath;
  record_.request.manifest = manifestPath;
  // Nobody reads from the one before: workers are paused, or not there yet.
  index_ = std::move(index);
  return true;
}

void Mount::nameObject(std::uint32_t ino, const link::ObjectName& name) {
  Node node;
  if (ino == 0 || index_->view().node(ino - 1, node) != Outcome::ok || node.kind != NodeKind::file) return;
  if (objectNameOf(node)) return;
  const std::unique_lock lock(namesMutex_);
  names_[ino] = name;
}

bool Mount::letGo(const link::ObjectName& name) {
  const auto backingId = openTable_->takeForEviction(name);
  if (!backingId) return false;
  closeBacking(*backingId);
  return true;
}

link::Buffer Mount::takeAccesses() {
  const auto batch = accesses_.take();
  if (batch.records.empty()) return {};
  return link::access(record_.id, batch.first, batch.records);
}

link::Buffer Mount::saveNames() const {
  const std::shared_lock lock(namesMutex_);
  wire::Writer out;
  out.number(static_cast<std::uint32_t>(names_.size()));
  for (const auto& [ino, name] : names_) out.number(ino).number(name.type).raw(name.bytes);
  return std::move(out.bytes());
}

bool Mount::restoreNames(std::span<const std::uint8_t> saved) {
  wire::Reader in(saved);
  for (auto count = in.count(4 + 33); count > 0; count--) {
    const auto ino = in.number<std::uint32_t>();
    link::ObjectName name;
    name.type = in.number<std::uint8_t>();
    const auto bytes = in.raw(name.bytes.size());
    if (bytes.size() != name.bytes.size()) return false;
    std::copy(bytes.begin(), bytes.end(), name.bytes.begin());
    names_[ino] = name;
  }
  return in.isDone();
}

}  // namespace bobbin
