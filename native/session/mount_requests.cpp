// The kernel's requests: answered from the index, from an object's file, or parked for the daemon.
#include "session/mount.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "session/cache_room.hpp"

namespace bobbin {

namespace {

// An id costs the kernel about 2 KB: 32 MB a mount.
constexpr std::size_t BACKING_IDS_MAX = 16'384;
// Something keeps taking the object away, or breaking the index, as soon as it is here.
constexpr std::uint32_t ATTEMPTS_MAX = 8;
// Beside an errno and DAMAGED: nothing is answered (yet).
constexpr Error NO_ANSWER = -2;

ParkedRequest withMessage(const ParkedRequest& toPark, const fuse::Request& request) {
  ParkedRequest parked = toPark;
  parked.message.assign(request.message().begin(), request.message().end());
  return parked;
}

}  // namespace

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

std::optional<link::ObjectName> Mount::nameOf(const Node& node) const {
  if (auto name = objectNameOf(node)) return name;
  const std::shared_lock lock(namesMutex_);
  const auto found = names_.find(node.position + 1);
  if (found == names_.end()) return std::nullopt;
  return found->second;
}

ObjectState Mount::stateOf(const Node& node) const {
  const auto name = nameOf(node);
  if (!name) return {};
  const bool isVerified = shared_.files.look(*name, node.size).found == ObjectFiles::Found::ok;
  return {.isCached = isVerified || shared_.files.exists(*name), .isVerified = isVerified};
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

}  // namespace bobbin
