// What the daemon says, frame by frame, and what becomes of the readers that waited for it.
#include "session/server.hpp"

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace bobbin {

namespace {

constexpr const char* KEPT_VARIABLE = "BOBBIN_RELOADED";

}  // namespace

void Server::onLink() {
  channel_.flush();
  if (channel_.fd() < 0) return;
  const bool isAlive = channel_.receive(reader_);
  while (auto frame = reader_.next()) {
    const auto decoded = link::decode(frame->kind, frame->payload);
    if (!decoded) {
      dropLink("it sent a frame that cannot be read");
      return;
    }
    if (!supervisor_.hasGreeted() && !std::holds_alternative<link::Hello>(*decoded)) {
      dropLink("it did not say hello");
      return;
    }
    lastHeard_ = Clock::now();
    std::visit([this](const auto& known) { take(known); }, *decoded);
    if (exitCode_ || channel_.fd() < 0) return;
  }
  if (reader_.isBroken()) dropLink("it sent no frames");
  if (isAlive || channel_.fd() < 0 || isStopping_ || isStoppedByDaemon_) return;
  // The end of the link is the end of the daemon, also if it only closed its end; SIGCHLD says so.
  channel_.detach();
  supervisor_.signal(SIGKILL);
}

void Server::dropLink(const char* why) {
  log(Level::error, "the daemon is killed", field("reason", why));
  channel_.detach();
  supervisor_.signal(SIGKILL);
}

void Server::take(const link::Hello& frame) {
  if (frame.version != link::VERSION) {
    dropLink("it speaks another version of the link");
    return;
  }
  supervisor_.greeted();
  std::vector<link::MountFacts> survivors;
  for (const auto& [id, mount] : mounts_) {
    const MountRecord& record = mount->record();
    survivors.push_back(
        {.mount = id, .openMode = record.openMode, .reason = record.reason, .note = record.request.note});
  }
  channel_.greet(link::mounts(survivors));
  channel_.setOpen();
  for (const auto& [id, mount] : mounts_) {
    if (mount->record().isClosed) channel_.send(link::closed(id));
  }
  for (const auto& [id, mount] : mounts_) mount->accesses().sendAgain();
  for (const auto& question : shared_.parked.questions()) {
    if (question.ino == 0)
      channel_.send(link::indexDamaged(question.mount, "readers wait for it"));
    else
      channel_.send(link::ensure(question.request, question.mount, question.ino));
  }
  if (isReady_) return;
  isReady_ = true;
  manager_.notify("READY=1\nSTATUS=serving " + options_.cache);
}

void Server::take(const link::Ready& frame) {
  shared_.known.insert(frame.object.name, digestOf(frame.object.stamp));
  auto answered = shared_.parked.answer(frame.request);
  if (!answered) return;
  const auto found = mounts_.find(answered->question.mount);
  if (found == mounts_.end()) return;
  found->second->nameObject(answered->question.ino, frame.object.name);
  handleAgain(answered->requests);
}

void Server::take(const link::Failed& frame) {
  const auto answered = shared_.parked.answer(frame.request);
  if (answered) fail(answered->requests, static_cast<int>(frame.error));
}

void Server::take(const link::Working& frame) { shared_.parked.progress(frame.requests); }

void Server::take(const link::Known& frame) {
  for (const auto& object : frame.objects) shared_.known.insert(object.name, digestOf(object.stamp));
}

void Server::take(const link::EvictAsk& frame) {
  std::vector<link::EvictOutcome> outcomes;
  for (const auto& name : frame.names) outcomes.push_back(evict(name));
  channel_.send(link::evictDone(frame.request, outcomes));
}

// First it is forgotten, so that no open finds it from here on; then it is looked whether one has.
link::EvictOutcome Server::evict(const link::ObjectName& name) {
  const auto taken = shared_.known.take(name);
  const auto putBack = [&](link::EvictOutcome outcome) {
    if (taken) shared_.known.insert(name, taken->stampDigest);
    return outcome;
  };
  for (const auto& [id, mount] : mounts_) {
    if (mount->isOpen(name)) return putBack(link::EvictOutcome::open);
  }
  if (taken && taken->wasUsed) return putBack(link::EvictOutcome::used);
  for (const auto& [id, mount] : mounts_) {
    if (!mount->letGo(name)) return putBack(link::EvictOutcome::open);
  }
  return link::EvictOutcome::gone;
}

void Server::take(const link::Mount& frame) {
  MountFailed failed;
  link::Mount request = frame;
  // The owner of the cache, unless it is a caller whom we know: then what the daemon says of them counts for nothing.
  MountOwner owner{.uid = ::getuid(), .gid = ::getgid(), .mustOwnFolder = false};
  if (options_.daemonUser) owner = {.uid = options_.daemonUser->uid, .gid = options_.daemonUser->gid};
  if (frame.caller != 0) {
    const Caller* caller = callers_.find(frame.caller);
    if (caller == nullptr) {
      channel_.send(link::mountFailed(frame.request, link::MountFailure::other, "whoever asked for it has gone"));
      return;
    }
    owner = {.uid = caller->uid, .gid = caller->gid, .mustOwnFolder = true};
    request.uid = caller->uid;
    request.gid = caller->gid;
    request.allowOther = false;
  }
  const std::uint32_t id = ++lastMount_;
  std::unique_ptr<Mount> mount;
  try {
    mount = Mount::create(id, std::move(request), owner, shared_, failed);
    if (mount != nullptr) mount->start();
  } catch (const std::exception& error) {
    // No memory, no threads: this mount is not made, the others go on.
    if (mount != nullptr) mount->unmount(true);
    mount.reset();
    failed = {link::MountFailure::other,
              std::string("cannot serve ") + frame.mountpoint + ": " + error.what()};
  }
  if (mount == nullptr) {
    log(Level::error, "a mount failed",
        field("mountpoint", frame.mountpoint) + "," + field("error", failed.message));
    channel_.send(link::mountFailed(frame.request, failed.cause, failed.message));
    return;
  }
  storeDescriptors(*mount);
  channel_.send(link::mounted(frame.request, id, mount->record().openMode, mount->record().reason));
  log(Level::info, "serving a mount",
      field("mountpoint", frame.mountpoint) + "," + field("source", frame.source));
  mounts_[id] = std::move(mount);
}

void Server::take(const link::Unmount& frame) {
  const auto found = mounts_.find(frame.mount);
  if (found == mounts_.end() || found->second->record().isClosed) {
    channel_.send(link::unmountDone(frame.request, link::UnmountOutcome::done, ""));
    return;
  }
  Mount& mount = *found->second;
  const Detached detached = mount.unmount(frame.isForced);
  if (detached.outcome == link::UnmountOutcome::done) close(mount);
  channel_.send(link::unmountDone(frame.request, detached.outcome, detached.message));
}

void Server::take(const link::Index& frame) {
  const auto found = mounts_.find(frame.mount);
  if (found == mounts_.end()) return;
  std::string reason;
  Mount& mount = *found->second;
  mount.pause();
  const bool isReplaced = mount.replaceIndex(frame.index, frame.manifest, reason);
  mount.start();
  auto requests = shared_.parked.answerIndex(frame.mount);
  if (isReplaced) {
    handleAgain(requests);
    return;
  }
  log(Level::error, "the package index that was made again cannot be used", field("reason", reason));
  fail(requests, EIO);
}

void Server::take(const link::Logged& frame) {
  const auto found = mounts_.find(frame.mount);
  if (found != mounts_.end()) found->second->accesses().logged(frame.count);
}

void Server::take(const link::Answer& frame) { callers_.answer(frame.caller, frame.line); }

// In our own memory, from which each daemon that we start, and whoever takes over from us, gets it. The name is ours alone, so a
// daemon can change nothing else of our environment.
void Server::take(const link::Keep& frame) { ::setenv(KEPT_VARIABLE, frame.text.c_str(), 1); }

void Server::take(const link::Serving&) {
  supervisor_.served();
  if (supervisor_.hasFallenBack()) return;
  notReplaced_.clear();
  // That of a daemon that is to end for its successor is not awaited.
  if (!successor_) endReload("");
}

void Server::take(const link::Stop&) { isStoppedByDaemon_ = true; }

void Server::take(const link::StatsAsk& frame) {
  sendAccesses();
  link::Stats stats;
  stats.hits = shared_.hits;
  stats.waiting = shared_.parked.waiting();
  stats.knownObjects = shared_.known.size();
  stats.unkeptMounts = unkept_.size();
  stats.daemonsStarted = daemonsStarted_;
  stats.version = BOBBIN_VERSION;
  stats.notReplaced = notReplaced_;
  stats.said = lastLines();
  for (const auto& [id, mount] : mounts_) {
    const auto totals = mount->totals();
    stats.openObjects += totals.objects;
    stats.openBytes += totals.bytes;
    stats.backingIds += totals.backingIds;
  }
  channel_.send(link::stats(frame.request, stats));
}

void Server::handleAgain(std::vector<ParkedRequest>& requests) {
  for (auto& request : requests) {
    const auto found = mounts_.find(request.mount);
    if (found == mounts_.end() || request.channel >= found->second->channels().size()) continue;
    found->second->handle(request.message, request.channel, request.attempts);
  }
}

void Server::fail(const std::vector<ParkedRequest>& requests, int error) {
  for (const auto& request : requests) {
    const auto found = mounts_.find(request.mount);
    if (found != mounts_.end()) found->second->answerError(request, error);
  }
}

}  // namespace bobbin
