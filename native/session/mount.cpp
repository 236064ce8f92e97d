#include "session/mount.hpp"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include <algorithm>
#include <csignal>
#include <cstdio>

#include "link/wire.hpp"
#include "session/cache_room.hpp"
#include "session/privileges.hpp"

namespace bobbin {

namespace {

constexpr std::size_t REQUEST_BYTES = 65'536;
constexpr int INIT_TIMEOUT_MS = 10'000;
// An id costs the kernel about 2 KB: 32 MB a mount.
constexpr std::size_t BACKING_IDS_MAX = 16'384;
// Something keeps taking the object away, or breaking the index, as soon as it is here.
constexpr std::uint32_t ATTEMPTS_MAX = 8;
// Until the server takes them; what comes then is counted and lost.
constexpr int WAKE_SIGNAL = SIGUSR1;

// Beside an errno and DAMAGED: nothing is answered (yet).
constexpr Error NO_ANSWER = -2;

}  // namespace

void installWakeSignal() {
  struct sigaction action {};
  // Without SA_RESTART: the read comes back with EINTR.
  action.sa_handler = [](int) {};
  ::sigemptyset(&action.sa_mask);
  ::sigaction(WAKE_SIGNAL, &action, nullptr);
}

link::Buffer MountRecord::save() const {
  wire::Writer out;
  out.number(id).number(mountId).text(device);
  out.number(request.uid).number(request.gid).number(request.umask).number(request.allowOther);
  out.number(request.openMode).number(request.timeNs);
  for (const std::string* text : {&request.mountpoint, &request.source, &request.index, &request.manifest,
                                  &request.registry, &request.package, &request.note})
    out.text(*text);
  out.number(request.message.has_value()).text(request.message.value_or(""));
  out.number(openMode).text(reason).number(agreement.minor).number(agreement.flags).number(isClosed);
  out.number(request.listAttributes);
  return std::move(out.bytes());
}

std::optional<MountRecord> MountRecord::restore(std::span<const std::uint8_t> saved) {
  wire::Reader in(saved);
  MountRecord record;
  record.id = in.number<std::uint32_t>();
  record.mountId = in.number<int>();
  record.device = in.text();
  link::Mount& request = record.request;
  request.uid = in.number<std::uint32_t>();
  request.gid = in.number<std::uint32_t>();
  request.umask = in.number<std::uint32_t>();
  request.allowOther = in.number<std::uint8_t>() != 0;
  request.openMode = static_cast<link::OpenMode>(in.number<std::uint8_t>());
  request.timeNs = in.number<std::int64_t>();
  for (std::string* text : {&request.mountpoint, &request.source, &request.index, &request.manifest,
                            &request.registry, &request.package, &request.note})
    *text = in.text();
  const bool hasMessage = in.number<std::uint8_t>() != 0;
  std::string message = in.text();
  if (hasMessage) request.message = std::move(message);
  record.openMode = static_cast<link::OpenMode>(in.number<std::uint8_t>());
  record.reason = in.text();
  record.agreement.minor = in.number<std::uint32_t>();
  record.agreement.flags = in.number<std::uint64_t>();
  record.isClosed = in.number<std::uint8_t>() != 0;
  // A service manager may have kept the record of a bobbin-fuse that did not know of it.
  if (in.isWhole() && !in.isDone()) request.listAttributes = in.number<std::uint8_t>() != 0;
  if (!in.isDone()) return std::nullopt;
  return record;
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

// --- beginning and end -----------------------------------------------------------------------------

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
      failed = {link::MountFailure::unavailable, "the kernel's first request is no INIT"};
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

// --- requests --------------------------------------------------------------------------------------

void Mount::handle(std::span<const std::uint8_t> message, std::uint32_t channel, std::uint32_t attempts) {
  const auto request = fuse::Request::parse(message);
  if (!request) {
    log(Level::error, "the kernel sent what is no request",
        field("bytes", static_cast<std::int64_t>(message.size())));
    return;
  }
  try {
    const ReplyBuffers::Borrowed buffer(shared_.buffers);
    Reply reply(buffer.bytes());
    const IndexFile* index = index_.get();
    Error error = dispatch(*request, channel, attempts, reply);
    if (error == NO_ANSWER) return;
    if (error == DAMAGED || index->isCut()) {
      error = EIO;
      if (attempts < ATTEMPTS_MAX) {
        parkForIndex({.mount = record_.id,
                      .channel = channel,
                      .attempts = attempts + 1,
                      .message = {message.begin(), message.end()}});
        return;
      }
    }
    const auto answer = reply.finish(request->header().unique, error);
    if (::write(channels_[channel].get(), answer.data(), answer.size()) < 0 && errno != ENOENT &&
        errno != ENODEV)
      log(Level::error, "the kernel refused an answer",
          field("error", errorText(errno)) + "," +
              field("opcode", static_cast<std::int64_t>(request->header().opcode)));
  } catch (const std::bad_alloc&) {
    // Answers and what waits take memory; a reader for whom there is none is told so.
    writeError(channel, request->header().unique, ENOMEM);
  }
}

void Mount::answerError(const ParkedRequest& request, int error) {
  if (request.channel < channels_.size()) writeError(request.channel, request.unique(), error);
}

void Mount::writeError(std::uint32_t channel, std::uint64_t unique, int error) const {
  const fuse::ReplyHeader header{.len = sizeof header, .error = -error, .unique = unique};
  // The reader may have gone meanwhile.
  [[maybe_unused]] const auto written = ::write(channels_[channel].get(), &header, sizeof header);
}

Error Mount::dispatch(const fuse::Request& request, std::uint32_t channel, std::uint32_t attempts,
                      Reply& reply) {
  using fuse::Opcode;
  const std::uint64_t nodeid = request.header().nodeid;
  const Names names(*index_, options_);
  switch (request.opcode()) {
    case Opcode::lookup: {
      const auto name = request.text();
      return name ? names.lookup(nodeid, *name, reply) : EINVAL;
    }
    case Opcode::forget:
    case Opcode::batchForget:
      // A node is a position in the index: there is nothing to forget, and no answer is wanted.
      return NO_ANSWER;
    case Opcode::getattr:
      return names.getattr(nodeid, reply);
    case Opcode::statx:
      return names.statx(nodeid, reply);
    case Opcode::access: {
      const auto in = request.fixed<fuse::AccessIn>();
      if (!in) return EINVAL;
      return (in->mask & W_OK) != 0 ? EROFS : 0;
    }
    case Opcode::readdir:
    case Opcode::readdirplus: {
      const auto in = request.fixed<fuse::ReadIn>();
      if (!in) return EINVAL;
      return names.readdir(nodeid, in->offset, in->size, request.opcode() == Opcode::readdirplus, reply);
    }
    case Opcode::open:
    case Opcode::read: {
      const ParkedRequest toPark{
          .mount = record_.id, .channel = channel, .attempts = attempts + 1, .message = {}};
      if (attempts >= ATTEMPTS_MAX) {
        log(Level::error, "an object is taken away as often as it is brought: giving up",
            field("ino", static_cast<std::int64_t>(positionOf(nodeid).value_or(0)) + 1));
        return EIO;
      }
      return request.opcode() == Opcode::open ? open(request, names, toPark, reply)
                                              : read(request, names, toPark, reply);
    }
    case Opcode::release:
      return release(request, names);
    case Opcode::getxattr:
    case Opcode::listxattr: {
      const auto in = request.fixed<fuse::GetxattrIn>();
      if (!in) return EINVAL;
      if (request.opcode() == Opcode::listxattr) return names.listxattr(nodeid, in->size, reply);
      const auto name = request.text(sizeof(fuse::GetxattrIn));
      if (!name) return EINVAL;
      return names.getxattr(
          nodeid, *name, in->size, [this](const Node& node) { return stateOf(node); }, reply);
    }
    case Opcode::statfs:
      return names.statfs(roomBytesOf(shared_.cache), reply);
    case Opcode::lseek: {
      const auto in = request.fixed<fuse::LseekIn>();
      return in ? names.lseek(nodeid, *in, reply) : EINVAL;
    }
    case Opcode::interrupt:
      return interrupt(request);
    case Opcode::readlink:
      return EINVAL;
    case Opcode::destroy:
    case Opcode::releasedir:
      return 0;
    case Opcode::ioctl:
      return ENOTTY;
    // Root can remount for writing; the mount stays what it is.
    case Opcode::setattr:
    case Opcode::symlink:
    case Opcode::mknod:
    case Opcode::mkdir:
    case Opcode::unlink:
    case Opcode::rmdir:
    case Opcode::rename:
    case Opcode::rename2:
    case Opcode::link:
    case Opcode::write:
    case Opcode::setxattr:
    case Opcode::removexattr:
    case Opcode::create:
    case Opcode::fallocate:
    case Opcode::copyFileRange:
    case Opcode::tmpfile:
      return EROFS;
    case Opcode::init:
      // Once a connection, and that was answered.
      return EIO;
    // The kernel takes ENOSYS as "never ask again": directories need no handle, and a close no flush.
    case Opcode::opendir:
    case Opcode::flush:
    case Opcode::fsync:
    case Opcode::fsyncdir:
      return ENOSYS;
  }
  return ENOSYS;
}

namespace {
ParkedRequest withMessage(const ParkedRequest& toPark, const fuse::Request& request) {
  ParkedRequest parked = toPark;
  parked.message.assign(request.message().begin(), request.message().end());
  return parked;
}
}  // namespace

Error Mount::open(const fuse::Request& request, const Names& names, const ParkedRequest& toPark,
                  Reply& reply) {
  const auto in = request.fixed<fuse::OpenIn>();
  if (!in) return EINVAL;
  const std::uint64_t nodeid = request.header().nodeid;
  Node node;
  if (const Error error = names.node(nodeid, node); error != 0) return error;
  if (node.kind != NodeKind::file) return EISDIR;
  if ((in->flags & O_ACCMODE) != O_RDONLY || (in->flags & O_TRUNC) != 0) return EROFS;
  // The kernel never asks again, on this mount.
  if (record_.openMode == link::OpenMode::none) return ENOSYS;

  const auto name = nameOf(node);
  Error error = NO_ANSWER;
  if (name) {
    std::unique_lock lock(stripeOf(*name));
    const auto opened = openTable_->acquire(*name, node.size);
    if (!opened) return ENFILE;
    if (record_.openMode == link::OpenMode::passthrough && !opened->isCached) {
      error = openPassthrough(node, *name, *opened, reply);
    } else {
      error = openCached(node, *name, reply);
    }
    if (error != 0) openTable_->release(*name);
  }
  if (error == NO_ANSWER) return park(node.position + 1, withMessage(toPark, request));
  if (error != 0) return error;
  if (toPark.attempts == 1) shared_.hits++;
  logAccess(link::AccessKind::open, node.position, node.size);
  return 0;
}

Error Mount::openCached(const Node& node, const link::ObjectName& name, Reply& reply) {
  const auto look = shared_.files.look(name, node.size);
  if (look.found == ObjectFiles::Found::error) return look.error;
  if (look.found == ObjectFiles::Found::unknown) return NO_ANSWER;
  if (record_.openMode == link::OpenMode::passthrough) openTable_->setCached(name);
  reply.put(fuse::OpenOut{
      .fh = 0, .openFlags = fuse::open_flag::KEEP_CACHE | fuse::open_flag::NOFLUSH, .backingId = 0});
  return 0;
}

Error Mount::openPassthrough(const Node& node, const link::ObjectName& name, const OpenTable::Opened& opened,
                             Reply& reply) {
  std::int32_t backingId = opened.backingId;
  if (backingId != 0) {
    const auto look = shared_.files.look(name, node.size);
    if (look.found == ObjectFiles::Found::error) return look.error;
    if (look.found == ObjectFiles::Found::unknown) return NO_ANSWER;
    if (look.stampDigest != opened.stampDigest) {
      // Another file has taken the object's place. Whoever has the old one open keeps the kernel on it.
      if (opened.opens > 1) return EIO;
      openTable_->setBacking(name, 0, 0);
      closeBacking(backingId);
      backingId = 0;
    }
  }
  if (backingId == 0) {
    Fd file;
    const auto look = shared_.files.open(name, node.size, file);
    if (look.found == ObjectFiles::Found::error) return look.error;
    if (look.found == ObjectFiles::Found::unknown) return NO_ANSWER;
    if (const auto idle = openTable_->takeIdleBacking(BACKING_IDS_MAX)) closeBacking(*idle);
    const fuse::BackingMap map{.fd = file.get(), .flags = 0, .padding = 0};
    backingId = ::ioctl(channels_[0].get(), fuse::IOCTL_BACKING_OPEN, &map);
    if (backingId <= 0) {
      if (!hasLoggedFallback_.exchange(true))
        log(Level::warn, "the kernel takes no backing file, such files are served without passthrough",
            field("error", errorText(errno)));
      openTable_->setCached(name);
      reply.put(fuse::OpenOut{
          .fh = 0, .openFlags = fuse::open_flag::KEEP_CACHE | fuse::open_flag::NOFLUSH, .backingId = 0});
      return 0;
    }
    openTable_->setBacking(name, backingId, look.stampDigest);
  }
  reply.put(fuse::OpenOut{
      .fh = 0, .openFlags = fuse::open_flag::PASSTHROUGH | fuse::open_flag::NOFLUSH, .backingId = backingId});
  return 0;
}

void Mount::closeBacking(std::int32_t backingId) {
  if (backingId == 0) return;
  const auto id = static_cast<std::uint32_t>(backingId);
  ::ioctl(channels_[0].get(), fuse::IOCTL_BACKING_CLOSE, &id);
}

Error Mount::read(const fuse::Request& request, const Names& names, const ParkedRequest& toPark,
                  Reply& reply) {
  const auto in = request.fixed<fuse::ReadIn>();
  if (!in) return EINVAL;
  Node node;
  if (const Error error = names.node(request.header().nodeid, node); error != 0) return error;
  if (node.kind != NodeKind::file) return EISDIR;
  if (in->offset >= node.size) return 0;
  const auto bytes = static_cast<std::size_t>(
      std::min({std::uint64_t{in->size}, node.size - in->offset, std::uint64_t{reply.room()}}));
  const auto name = nameOf(node);
  // Of reads that come at once, the one that comes first counts.
  const bool isFirst = name && (record_.openMode == link::OpenMode::none ? isFirstRead(node.position)
                                                                         : openTable_->isFirstRead(*name));
  const Error error = name ? readObject(node, *name, in->offset, bytes, reply) : NO_ANSWER;
  if (error == 0 && isFirst) {
    if (record_.openMode == link::OpenMode::none && toPark.attempts == 1) shared_.hits++;
    logAccess(link::AccessKind::firstRead, node.position, bytes);
  }
  if (error != 0 && isFirst) forgetRead(node.position, *name);
  return error == NO_ANSWER ? park(node.position + 1, withMessage(toPark, request)) : error;
}

Error Mount::readObject(const Node& node, const link::ObjectName& name, std::uint64_t offset,
                        std::size_t bytes, Reply& reply) {
  Fd own;
  int fd = -1;
  std::shared_lock shared(stripeOf(name), std::defer_lock);
  if (record_.openMode != link::OpenMode::none) {
    shared.lock();
    fd = openTable_->descriptor(name);
  }
  if (fd < 0) {
    if (shared.owns_lock()) shared.unlock();
    const auto look = shared_.files.open(name, node.size, own);
    if (look.found == ObjectFiles::Found::error) return look.error;
    if (look.found == ObjectFiles::Found::unknown) return NO_ANSWER;
    fd = own.get();
  }
  std::uint8_t* into = reply.grow(bytes);
  for (std::size_t done = 0; done < bytes;) {
    const auto n = ::pread(fd, into + done, bytes - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      log(Level::error,
          n < 0 ? "a cached object cannot be read" : "a cached object was cut short while it was open",
          field("ino", static_cast<std::int64_t>(node.position) + 1) + "," +
              field("error", n < 0 ? errorText(errno) : "end of file"));
      return EIO;
    }
    done += static_cast<std::size_t>(n);
  }
  if (own && record_.openMode != link::OpenMode::none) {
    // For the reads that follow.
    const std::unique_lock lock(stripeOf(name));
    own = openTable_->keepDescriptor(name, std::move(own), shared_.descriptorsMax);
  }
  return 0;
}

Error Mount::release(const fuse::Request& request, const Names& names) {
  Node node;
  if (const Error error = names.node(request.header().nodeid, node); error != 0) return error;
  if (const auto name = nameOf(node)) {
    const std::unique_lock lock(stripeOf(*name));
    openTable_->release(*name);
  }
  return 0;
}

Error Mount::interrupt(const fuse::Request& request) {
  const auto in = request.fixed<fuse::InterruptIn>();
  if (!in) return EINVAL;
  auto interrupted = shared_.parked.interrupt(record_.id, in->unique);
  switch (interrupted.outcome) {
    case ParkedMisses::Interrupt::unknown:
      // Not parked yet, or answered already. EAGAIN has the kernel say it again, if it still matters.
      return EAGAIN;
    case ParkedMisses::Interrupt::waits:
      return NO_ANSWER;
    case ParkedMisses::Interrupt::gone:
      if (interrupted.cancelled) shared_.send(link::cancel(*interrupted.cancelled));
      answerError(interrupted.request, EINTR);
      return NO_ANSWER;
  }
  return NO_ANSWER;
}

// --- waiting ---------------------------------------------------------------------------------------

void Mount::ask(const ParkedMisses::Question& question) {
  shared_.send(link::ensure(question.request, question.mount, question.ino));
}

Error Mount::park(std::uint32_t ino, ParkedRequest request) {
  if (const auto question = shared_.parked.park(ino, std::move(request))) ask(*question);
  return NO_ANSWER;
}

Error Mount::parkForIndex(ParkedRequest request) {
  if (shared_.parked.park(0, std::move(request))) {
    log(Level::warn, "the package index is damaged, it is made again",
        field("mountpoint", record_.request.mountpoint) + "," + field("index", index_->indexPath()));
    shared_.send(link::indexDamaged(record_.id, "a part that was asked for is damaged"));
  }
  return NO_ANSWER;
}

// --- what is here ----------------------------------------------------------------------------------

std::optional<link::ObjectName> Mount::nameOf(const Node& node) const {
  if (auto name = objectNameOf(node)) return name;
  const std::shared_lock lock(namesMutex_);
  const auto found = names_.find(node.position + 1);
  if (found == names_.end()) return std::nullopt;
  return found->second;
}

void Mount::nameObject(std::uint32_t ino, const link::ObjectName& name) {
  Node node;
  if (ino == 0 || index_->view().node(ino - 1, node) != Outcome::ok || node.kind != NodeKind::file) return;
  if (objectNameOf(node)) return;
  const std::unique_lock lock(namesMutex_);
  names_[ino] = name;
}

ObjectState Mount::stateOf(const Node& node) const {
  const auto name = nameOf(node);
  if (!name) return {};
  const bool isVerified = shared_.files.look(*name, node.size).found == ObjectFiles::Found::ok;
  return {.isCached = isVerified || shared_.files.exists(*name), .isVerified = isVerified};
}

bool Mount::letGo(const link::ObjectName& name) {
  const auto backingId = openTable_->takeForEviction(name);
  if (!backingId) return false;
  closeBacking(*backingId);
  return true;
}

bool Mount::isFirstRead(std::uint32_t position) {
  const std::uint64_t bit = 1ULL << (position % 64U);
  std::atomic<std::uint64_t>& word = wasRead_[position / 64];
  return (word.load(std::memory_order_relaxed) & bit) == 0 && (word.fetch_or(bit) & bit) == 0;
}

void Mount::forgetRead(std::uint32_t position, const link::ObjectName& name) {
  if (record_.openMode == link::OpenMode::none)
    wasRead_[position / 64].fetch_and(~(1ULL << (position % 64U)));
  else
    openTable_->forgetRead(name);
}

void Mount::logAccess(link::AccessKind kind, std::uint32_t position, std::uint64_t bytes) {
  if (shared_.withoutAccesses) return;
  timespec now{};
  // By the kernel's tick, 4 ms or less: no more is needed, and it costs a tenth.
  ::clock_gettime(CLOCK_REALTIME_COARSE, &now);
  const auto timeNs =
      static_cast<std::uint64_t>(now.tv_sec) * 1'000'000'000U + static_cast<std::uint64_t>(now.tv_nsec);
  accesses_.add({.timeNs = timeNs, .ino = position + 1, .kind = kind, .bytes = bytes});
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
