// What a bobbin-fuse leaves to the next: to one that is executed in its place, or, by the service manager, after its death.
#include "session/server.hpp"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "link/wire.hpp"
#include "session/server_events.hpp"

namespace bobbin {

namespace {

std::string nameOf(std::uint32_t mount, const std::string& part) {
  return "mount-" + std::to_string(mount) + "-" + part;
}

Fd memoryOf(std::span<const std::uint8_t> bytes) {
  Fd memory(::memfd_create("bobbin-state", MFD_CLOEXEC));
  for (std::size_t done = 0; memory && done < bytes.size();) {
    const auto n = ::write(memory.get(), bytes.data() + done, bytes.size() - done);
    if (n <= 0) return Fd();
    done += static_cast<std::size_t>(n);
  }
  return memory;
}

link::Buffer readMemory(int fd) {
  const auto bytes = ::lseek(fd, 0, SEEK_END);
  link::Buffer read(bytes > 0 ? static_cast<std::size_t>(bytes) : 0);
  for (std::size_t done = 0; done < read.size();) {
    const auto n = ::pread(fd, read.data() + done, read.size() - done, static_cast<off_t>(done));
    if (n <= 0) return {};
    done += static_cast<std::size_t>(n);
  }
  return read;
}

void putBlob(wire::Writer& out, const link::Buffer& blob) {
  out.number(static_cast<std::uint64_t>(blob.size())).raw(blob);
}

std::span<const std::uint8_t> takeBlob(wire::Reader& in) { return in.raw(in.number<std::uint64_t>()); }

// One that was left to us; -1 stands for none.
Fd takeDescriptor(wire::Reader& in) {
  Fd inherited(in.number<int>());
  if (inherited) setInherited(inherited.get(), false);
  return inherited;
}

}  // namespace

void Server::storeDescriptors(const Mount& mount) {
  // Without that, whoever waits when we die would wait for ever: an end of the connection is better.
  const bool isSentAgain = mount.record().agreement.has(fuse::init::HAS_RESEND);
  if (!manager_.isThere() || !isSentAgain) return;
  const Fd record = memoryOf(mount.record().save());
  if (record && manager_.store(descriptorsOf(mount, record.get()))) return;
  unkept_.insert(mount.id());
  log(Level::warn, "the service manager cannot keep this mount, which would end with bobbin-fuse: raise FileDescriptorStoreMax=",
      field("mountpoint", mount.record().request.mountpoint));
}

void Server::removeDescriptors(const Mount& mount) {
  const bool isUnkept = unkept_.erase(mount.id()) > 0;
  if (!manager_.isThere() || isUnkept || !mount.record().agreement.has(fuse::init::HAS_RESEND)) return;
  std::vector<std::string> names;
  for (const auto& [name, fd] : descriptorsOf(mount, -1)) names.push_back(name);
  manager_.remove(names);
}

std::vector<std::pair<std::string, int>> Server::descriptorsOf(const Mount& mount, int record) {
  std::vector<std::pair<std::string, int>> descriptors = {{nameOf(mount.id(), "record"), record},
                                                          {nameOf(mount.id(), "open"), mount.openTableMemory()},
                                                          {nameOf(mount.id(), "folder"), mount.folder()}};
  for (std::size_t i = 0; i < mount.channels().size(); i++)
    descriptors.emplace_back(nameOf(mount.id(), "fuse-" + std::to_string(i)), mount.channels()[i].get());
  return descriptors;
}

// After a death of ours: the connections live on in the service manager's store. What had been read and
// not answered is asked for again.
void Server::recover(std::map<std::string, Fd> stored) {
  for (auto& [name, fd] : stored) {
    std::uint32_t id = 0;
    if (std::sscanf(name.c_str(), "mount-%u-", &id) != 1 || name != nameOf(id, "record")) continue;
    auto record = MountRecord::restore(readMemory(fd.get()));
    const auto table = stored.find(nameOf(id, "open"));
    const auto folder = stored.find(nameOf(id, "folder"));
    std::vector<Fd> channels;
    for (std::size_t i = 0;; i++) {
      const auto channel = stored.find(nameOf(id, "fuse-" + std::to_string(i)));
      if (channel == stored.end()) break;
      channels.push_back(std::move(channel->second));
    }
    if (!record || table == stored.end() || folder == stored.end() || channels.empty()) continue;
    lastMount_ = std::max(lastMount_, id);
    std::string reason;
    auto mount =
        Mount::adopt(std::move(*record), std::move(channels), std::move(table->second),
                     std::move(folder->second), shared_, reason);
    if (mount == nullptr) {
      log(Level::error, "a mount of the last bobbin-fuse cannot go on", field("reason", reason));
      continue;
    }
    log(Level::warn, "a mount of the last bobbin-fuse goes on",
        field("mountpoint", mount->record().request.mountpoint));
    mount->accesses().continueLog();
    mount->start();
    mount->resend();
    mounts_[id] = std::move(mount);
  }
  onMountTable();
}

Fd Server::saveState() const {
  wire::Writer out;
  out.number(STATE_VERSION);
  supervisor_.save(out);
  out.number(daemonsStarted_).text(notReplaced_);
  const auto said = lastLines();
  out.number(static_cast<std::uint32_t>(said.size()));
  for (const auto& line : said) out.number(line.timeMs).number(line.level).text(line.message).text(line.fields);
  out.number(channel_.fd()).number(owner_.get());
  doors_.save(out);
  out.number(channel_.isOpen()).number(isReady_).number(isStoppedByDaemon_).number(lastMount_);
  putBlob(out, channel_.rest());
  putBlob(out, {reader_.rest().begin(), reader_.rest().end()});
  putBlob(out, shared_.known.save());
  putBlob(out, shared_.parked.save());
  out.number(manager_.kept()).number(static_cast<std::uint32_t>(unkept_.size()));
  for (const auto id : unkept_) out.number(id);
  out.number(static_cast<std::uint32_t>(shared_.roots.size()));
  for (const auto& root : shared_.roots) out.text(root.path).number(root.folder.get());
  out.number(static_cast<std::uint32_t>(mounts_.size()));
  for (const auto& [id, mount] : mounts_) {
    putBlob(out, mount->record().save());
    putBlob(out, mount->saveNames());
    putBlob(out, mount->accesses().save());
    out.number(mount->openTableMemory()).number(mount->folder()).number(static_cast<std::uint32_t>(mount->channels().size()));
    for (const auto& channel : mount->channels()) out.number(channel.get());
  }
  return memoryOf(out.bytes());
}

bool Server::restore(int fd) {
  const Fd memory(fd);
  const link::Buffer saved = readMemory(fd);
  wire::Reader in(saved);
  if (in.number<std::uint32_t>() != STATE_VERSION) return false;
  supervisor_.restore(in);
  daemonsStarted_ = in.number<std::uint64_t>();
  notReplaced_ = in.text();
  std::vector<LoggedLine> said;
  for (auto count = in.number<std::uint32_t>(); count > 0 && in.isWhole(); count--) {
    LoggedLine& line = said.emplace_back();
    line.timeMs = in.number<std::int64_t>();
    line.level = in.number<Level>();
    line.message = in.text();
    line.fields = in.text();
  }
  rememberLines(std::move(said));
  Fd link = takeDescriptor(in);
  owner_ = takeDescriptor(in);
  doors_.restore(in);
  const bool isOpen = in.number<std::uint8_t>() != 0;
  isReady_ = in.number<std::uint8_t>() != 0;
  isStoppedByDaemon_ = in.number<std::uint8_t>() != 0;
  lastMount_ = in.number<std::uint32_t>();
  const auto unsent = takeBlob(in);
  const auto unread = takeBlob(in);
  if (!shared_.known.restore(takeBlob(in)) || !shared_.parked.restore(takeBlob(in))) return false;
  if (openCache() != 0) return false;
  manager_.setKept(in.number<std::uint32_t>());
  for (auto count = in.number<std::uint32_t>(); count > 0 && in.isWhole(); count--)
    unkept_.insert(in.number<std::uint32_t>());
  for (auto count = in.number<std::uint32_t>(); count > 0 && in.isWhole(); count--) {
    std::string path = in.text();
    shared_.roots.push_back({.path = std::move(path), .folder = takeDescriptor(in)});
  }
  for (auto count = in.number<std::uint32_t>(); count > 0 && in.isWhole(); count--) {
    auto record = MountRecord::restore(takeBlob(in));
    const auto names = takeBlob(in);
    const auto accesses = takeBlob(in);
    Fd table = takeDescriptor(in);
    Fd folder = takeDescriptor(in);
    std::vector<Fd> channels;
    for (auto left = in.number<std::uint32_t>(); left > 0 && in.isWhole(); left--)
      channels.push_back(takeDescriptor(in));
    if (!record) return false;
    const std::uint32_t id = record->id;
    std::string reason;
    auto mount = Mount::adopt(std::move(*record), std::move(channels), std::move(table), std::move(folder),
                              shared_, reason);
    if (mount == nullptr) {
      // Its readers get ENOTCONN; the others go on.
      log(Level::error, "a mount cannot go on", field("reason", reason));
      continue;
    }
    if (!mount->restoreNames(names) || !mount->accesses().restore(accesses)) return false;
    mounts_[id] = std::move(mount);
  }
  if (!in.isDone()) return false;
  if (link) {
    channel_.attach(std::move(link));
    channel_.queue(unsent);
    if (isOpen) channel_.setOpen();
    reader_.append(unread);
    add(epoll_.get(), channel_.fd(), EPOLLIN | EPOLLOUT | EPOLLET, Event::link);
  }
  lastHeard_ = Clock::now();
  for (auto& [id, mount] : mounts_) mount->start();
  // It may have ended while nobody was there to be told.
  if (const auto exitCode = supervisor_.reap()) onDaemonEnd(*exitCode);
  if (supervisor_.child() == 0 && !exitCode_ && Clock::now() >= supervisor_.nextStart()) startDaemon();
  onMountTable();
  log(Level::info, "bobbin-fuse was replaced in place",
      field("mounts", static_cast<std::int64_t>(mounts_.size())));
  return true;
}

// The file at our path may be another one by now; it says which state it can read.
bool Server::isFitToUpgrade() const {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return false;
  const Fd readEnd(ends[0]);
  Fd writeEnd(ends[1]);
  char flag[] = "--state-version";
  std::string path = options_.executable;
  char* argv[] = {path.data(), flag, nullptr};
  const pid_t child = ::fork();
  if (child < 0) return false;
  if (child == 0) {
    ::dup2(writeEnd.get(), STDOUT_FILENO);
    ::execv(argv[0], argv);
    ::_exit(127);
  }
  writeEnd.reset();
  char answer[32] = {};
  const auto n = ::read(readEnd.get(), answer, sizeof answer - 1);
  int status = 0;
  while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  return n > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0 &&
         std::atoi(answer) == static_cast<int>(STATE_VERSION);
}

std::vector<int> Server::inheritedDescriptors() const {
  std::vector<int> inherited = doors_.descriptors();
  for (const int fd : {channel_.fd(), owner_.get()}) {
    if (fd >= 0) inherited.push_back(fd);
  }
  for (const auto& root : shared_.roots) inherited.push_back(root.folder.get());
  for (const auto& [id, mount] : mounts_) {
    inherited.push_back(mount->openTableMemory());
    if (mount->folder() >= 0) inherited.push_back(mount->folder());
    for (const auto& channel : mount->channels()) inherited.push_back(channel.get());
  }
  return inherited;
}

void Server::upgrade() {
  if (isStopping_) return endReload("bobbin-fuse is stopping");
  if (!isFitToUpgrade()) {
    log(Level::error, "the new bobbin-fuse cannot take over: it is kept for the next start",
        field("executable", options_.executable));
    notReplaced_ = options_.executable + " cannot take over (it does not run, or takes over other states only): restart instead, which ends the mounts";
    endReload(notReplaced_);
    return;
  }
  // The next bobbin-fuse starts one of its own.
  endSuccessor();
  log(Level::info, "bobbin-fuse replaces itself", field("executable", options_.executable));
  // From here on no request is under way: each is answered, parked, or still with the kernel.
  for (auto& [id, mount] : mounts_) mount->pause();
  channel_.flush();
  const Fd state = saveState();
  if (state) {
    auto inherited = inheritedDescriptors();
    inherited.push_back(state.get());
    for (const int fd : inherited) setInherited(fd, true);
    ::setenv(STATE_VARIABLE, std::to_string(state.get()).c_str(), 1);
    if (reloadAsker_ != 0) ::setenv(RELOAD_VARIABLE, std::to_string(reloadAsker_).c_str(), 1);
    keepOverExec(true);
    std::vector<char*> argv;
    for (auto& argument : options_.arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    ::execv(options_.executable.c_str(), argv.data());
    const int error = errno;
    keepOverExec(false);
    ::unsetenv(STATE_VARIABLE);
    ::unsetenv(RELOAD_VARIABLE);
    for (const int fd : inherited) setInherited(fd, false);
    log(Level::error, "bobbin-fuse cannot replace itself and goes on", field("error", errorText(error)));
  }
  endReload("bobbin-fuse cannot replace itself and goes on: look at the log");
  for (auto& [id, mount] : mounts_) mount->start();
}

}  // namespace bobbin
