#include "session/server.hpp"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "link/wire.hpp"
#include "session/reload.hpp"

namespace bobbin {

namespace {

using std::chrono::seconds;

// A daemon that has questions to answer and says nothing is stuck.
constexpr seconds SILENCE_MAX{30};
constexpr seconds GREETING_MAX{60};
// For putting its store away when it is told to end.
constexpr seconds END_MAX{20};
constexpr std::size_t QUEUED_MAX = 64U << 20U;
// Access records are given up before that.
constexpr std::size_t QUEUED_FOR_ACCESSES_MAX = 8U << 20U;
constexpr int LOCK_TRIES = 100;
constexpr int EXIT_CACHE_IN_USE = 11;
constexpr int EXIT_ACCESS_DENIED = 12;
constexpr int EXIT_FAILED = 1;
constexpr const char* STATE_VARIABLE = "BOBBIN_FUSE_STATE";
constexpr const char* RELOAD_VARIABLE = "BOBBIN_FUSE_RELOAD";
constexpr const char* KEPT_VARIABLE = "BOBBIN_RELOADED";

// A caller's events are its number and that.
constexpr std::uint64_t CALLERS = 1ULL << 32U;

enum class Event : std::uint64_t { signals, timer, wake, mountTable, link, mountsDoor, successor };

void ignoreResult(long) {}

bool add(int epoll, int fd, std::uint32_t events, Event event) {
  epoll_event item{};
  item.events = events;
  item.data.u64 = static_cast<std::uint64_t>(event);
  return ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &item) == 0;
}

std::string makeFolders(const std::string& path) {
  for (std::size_t at = 1; at != std::string::npos;) {
    at = path.find('/', at);
    const std::string part = path.substr(0, at);
    if (at != std::string::npos) at++;
    if (part.empty() || ::mkdir(part.c_str(), 0750) == 0 || errno == EEXIST) continue;
    return "make the folder " + part + ": " + errorText(errno);
  }
  return "";
}

// Whether a file that this thread makes in a folder would be the folder's owner's, or there is no folder that takes files. It is
// tried out, since a file server may give root's files to somebody else, and user namespaces show owners differently.
bool isOwnersOwn(const std::string& folder, uid_t owner) {
  Fd file(::open(folder.c_str(), O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600));
  if (!file && (errno == EOPNOTSUPP || errno == EISDIR || errno == ENOENT)) {
    // A filesystem that knows no files without a name.
    const std::string path = folder + "/.bobbin-fuse-" + std::to_string(::getpid());
    file.reset(::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (file) ::unlink(path.c_str());
  }
  struct stat stats {};
  // Root without its capabilities over files is refused like anybody else.
  if (!file) return errno != EACCES;
  return ::fstat(file.get(), &stats) != 0 || stats.st_uid == owner;
}

std::string endText(int exitCode) {
  if (exitCode > 128) return std::string("was ended by a signal (") + ::strsignal(exitCode - 128) + ")";
  return "ended with exit code " + std::to_string(exitCode);
}

// What a process that was just started has said at its end of the link.
enum class Greeting { none, ours, other };
Greeting greetingAt(int link) {
  std::array<std::uint8_t, link::FRAME_HEADER_BYTES + sizeof(std::uint32_t)> bytes{};
  const auto n = ::recv(link, bytes.data(), bytes.size(), MSG_PEEK | MSG_DONTWAIT);
  if (n < static_cast<ssize_t>(bytes.size())) return Greeting::none;
  std::uint16_t kind = 0;
  std::uint32_t version = 0;
  std::memcpy(&kind, bytes.data() + sizeof(std::uint32_t), sizeof kind);
  std::memcpy(&version, bytes.data() + link::FRAME_HEADER_BYTES, sizeof version);
  return kind == 1 && version == link::VERSION ? Greeting::ours : Greeting::other;
}

// The number behind `"pid":` in what the owner of a cache has written.
std::string ownerOf(int fd) {
  char text[4096];
  const auto n = ::pread(fd, text, sizeof text - 1, 0);
  text[std::max<ssize_t>(n, 0)] = '\0';
  const char* at = std::strstr(text, "\"pid\":");
  return at == nullptr ? "another process" : "process " + std::to_string(std::atoi(at + 6));
}

link::ChildUser childUser(const std::optional<Account>& account) {
  if (!account || account->uid == ::getuid()) return {};
  return {.become = [account] { return becomeForExec(*account); },
          .kill =
              [](pid_t child, int number) {
                const CapabilityRaised raised(Capability::kill);
                ::kill(child, number);
              }};
}

}  // namespace

Server::Server(ServerOptions options)
    : options_(std::move(options)), shared_(options_.patience), supervisor_(options_.command, childUser(options_.daemonUser)), doors_(options_.socket, options_.isForGroup) {
  shared_.threads = options_.threads;
  shared_.withoutPassthrough = options_.withoutPassthrough;
  shared_.withoutResend = options_.withoutResend;
  shared_.withoutAccesses = options_.withoutAccesses;
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    limit.rlim_cur = limit.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &limit);
    // Half is left for connections, and for files that are opened to register them.
    shared_.descriptorsMax = static_cast<std::size_t>(limit.rlim_cur / 2);
  }
  shared_.send = [this](const link::Buffer& frame) { channel_.send(frame); };
  shared_.onEnded = [this](std::uint32_t mount) {
    {
      const std::lock_guard lock(endedMutex_);
      ended_.push_back(mount);
    }
    ::eventfd_write(wake_.get(), 1);
  };
}

Server::~Server() = default;

int Server::run() {
  const auto refuse = [](const std::string& problem, int code) {
    log(Level::error, problem);
    return code;
  };
  if (const std::string problem = watch(); !problem.empty()) return refuse(problem, EXIT_FAILED);
  const char* state = ::getenv(STATE_VARIABLE);
  if (state != nullptr) {
    const int fd = std::atoi(state);
    ::unsetenv(STATE_VARIABLE);
    // Nothing to fall back on: the one that knew it all has gone.
    if (!restore(fd)) return refuse("what the last bobbin-fuse has left cannot be read", EXIT_FAILED);
    renewDaemon();
  } else {
    if (const std::string problem = openMountRoots(options_.mountBelow, shared_.roots); !problem.empty())
      return refuse(problem, EXIT_FAILED);
    const ActingAs owner(options_.daemonUser);
    if (const auto refusal = refuseForeignCache()) return refuse(refusal->problem, refusal->exitCode);
    if (const std::string problem = makeFolders(options_.cache); !problem.empty())
      return refuse(problem, EXIT_FAILED);
    if (const auto refusal = takeCache()) return refuse(refusal->problem, refusal->exitCode);
    if (const int error = openCache(); error != 0)
      return refuse("open the store of " + options_.cache + ": " + errorText(error), EXIT_FAILED);
    if (const std::string problem = doors_.listen(); !problem.empty())
      return refuse(problem, EXIT_FAILED);
    writeOwner();
  }
  if (state == nullptr) {
    recover(manager_.stored());
    startDaemon();
  }

  if (doors_.mounts() >= 0) add(epoll_.get(), doors_.mounts(), EPOLLIN, Event::mountsDoor);

  while (!exitCode_) {
    epoll_event events[16];
    const int count = ::epoll_wait(epoll_.get(), events, 16, -1);
    if (count < 0 && errno != EINTR) return refuse("epoll_wait: " + errorText(errno), EXIT_FAILED);
    for (int i = 0; i < count && !exitCode_; i++) {
      try {
        onEvent(events[i].data.u64);
      } catch (const std::exception& error) {
        // No memory, no threads. What the daemon was told or has told may be lost, so it is told anew.
        log(Level::error, "an event could not be handled", field("error", error.what()));
        if (channel_.fd() >= 0) dropLink("what it said may be lost");
      }
    }
    if (wantsUpgrade_ && !exitCode_) {
      wantsUpgrade_ = false;
      upgrade();
    }
  }
  release();
  return *exitCode_;
}

void Server::onEvent(std::uint64_t event) {
  if (event >= CALLERS) return onCaller(event - CALLERS);
  switch (static_cast<Event>(event)) {
    case Event::signals:
      return onSignals();
    case Event::timer:
      return onTick();
    case Event::wake:
      return onEnded();
    case Event::mountTable:
      return onMountTable();
    case Event::link:
      return onLink();
    case Event::successor:
      return onSuccessor();
    case Event::mountsDoor:
      return callers_.accept(doors_.mounts(), [this](int connection, std::uint64_t number) {
        return add(epoll_.get(), connection, EPOLLIN, static_cast<Event>(CALLERS + number));
      });
  }
}

// --- beginning -------------------------------------------------------------------------------------

std::string Server::watch() {
  sigset_t handled;
  ::sigemptyset(&handled);
  for (const int number : {SIGTERM, SIGINT, SIGHUP, SIGCHLD, SIGUSR2}) ::sigaddset(&handled, number);
  // Before any thread is there, so that none of them takes a signal.
  ::pthread_sigmask(SIG_BLOCK, &handled, nullptr);
  ::signal(SIGPIPE, SIG_IGN);
  installWakeSignal();
  installMappingGuard();
  epoll_.reset(::epoll_create1(EPOLL_CLOEXEC));
  signals_.reset(::signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK));
  timer_.reset(::timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
  wake_.reset(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  mountTable_.reset(::open("/proc/self/mountinfo", O_RDONLY | O_CLOEXEC));
  itimerspec each{};
  each.it_interval.tv_sec = each.it_value.tv_sec = 1;
  ::timerfd_settime(timer_.get(), 0, &each, nullptr);
  const bool isWatched =
      add(epoll_.get(), signals_.get(), EPOLLIN, Event::signals) &&
      add(epoll_.get(), timer_.get(), EPOLLIN, Event::timer) &&
      add(epoll_.get(), wake_.get(), EPOLLIN, Event::wake) &&
      add(epoll_.get(), mountTable_.get(), EPOLLPRI | EPOLLERR | EPOLLET, Event::mountTable);
  return isWatched ? "" : "cannot watch for events: " + errorText(errno);
}

// Root may write anywhere, but the owner of a cache can neither read nor replace what root leaves in it: so root does not begin
// there (daemon/store/foreign-folder.ts). Other users are told by the kernel.
std::optional<Refusal> Server::refuseForeignCache() const {
  const uid_t acting = options_.daemonUser ? options_.daemonUser->uid : ::geteuid();
  struct stat stats {};
  if (acting != 0 || ::stat(options_.cache.c_str(), &stats) != 0 || stats.st_uid == acting) return std::nullopt;
  if (isOwnersOwn(options_.cache, stats.st_uid)) return std::nullopt;
  const std::string user = std::to_string(stats.st_uid);
  return Refusal{"the cache " + options_.cache + " belongs to user " + user +
                     ", who could neither read nor replace what root leaves in it: start this as that user (sudo -u '#" + user +
                     "'), name the user with --daemon-user, or name another cache with --cache",
                 EXIT_ACCESS_DENIED};
}

std::optional<Refusal> Server::takeCache() {
  const auto failed = [](const std::string& problem) { return Refusal{problem, EXIT_FAILED}; };
  struct stat stats {};
  if (::stat(options_.cache.c_str(), &stats) != 0)
    return failed("open the cache " + options_.cache + ": " + errorText(errno));
  if ((stats.st_mode & S_IWOTH) != 0)
    return Refusal{"everybody may write to the cache folder " + options_.cache +
                       ": run chmod o-w on it, or name another one with --cache",
                   EXIT_ACCESS_DENIED};
  const std::string path = options_.cache + "/owner";
  for (int tries = 0; tries < LOCK_TRIES; tries++) {
    owner_.reset(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0640));
    if (!owner_) return failed("open " + path + ": " + errorText(errno));
    if (::flock(owner_.get(), LOCK_EX | LOCK_NB) == 0) {
      struct stat ours {
      }, there{};
      // Somebody may have deleted the file after we opened it: then our lock guards nothing.
      if (::fstat(owner_.get(), &ours) == 0 && ::stat(path.c_str(), &there) == 0 &&
          ours.st_ino == there.st_ino && ours.st_dev == there.st_dev)
        return std::nullopt;
      continue;
    }
    if (errno != EWOULDBLOCK) return failed("lock " + path + ": " + errorText(errno));
    // Who only looks has a shared lock for a moment.
    if (::flock(owner_.get(), LOCK_SH | LOCK_NB) != 0) break;
    ::flock(owner_.get(), LOCK_UN);
    ::usleep(static_cast<useconds_t>(1000 + std::rand() % 20'000));
  }
  return Refusal{"the cache " + options_.cache + " belongs to " + ownerOf(owner_.get()) +
                     ": stop that, or name another cache with --cache",
                 EXIT_CACHE_IN_USE};
}

// 0 or an errno.
int Server::openCache() {
  const int error = shared_.cache.open(options_.cache);
  return error != 0 ? error : shared_.files.openFolder(options_.cache);
}

// For whoever looks for the daemon from now on: the socket takes callers before the daemon does. It
// writes the same once it is there, with its version.
void Server::writeOwner() {
  const auto now = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::system_clock::now().time_since_epoch());
  const std::string facts = "{" + field("pid", std::int64_t{::getpid()}) + "," + doors_.facts() +
                            "," + field("version", BOBBIN_VERSION) + "," + field("startedAt", static_cast<std::int64_t>(now.count())) + "}\n";
  if (::ftruncate(owner_.get(), 0) != 0 ||
      ::pwrite(owner_.get(), facts.data(), facts.size(), 0) != static_cast<ssize_t>(facts.size()))
    log(Level::warn, "the owner file cannot be written", field("error", errorText(errno)));
}

int Server::startProcess(link::Supervisor& process, Fd& link) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return errno;
  link.reset(ends[0]);
  const Fd theirs(ends[1]);
  std::vector<link::Inherited> inherited = doors_.inherited();
  inherited.push_back({"BOBBIN_LINK_FD", theirs.get()});
  inherited.push_back({"BOBBIN_OWNER_FD", owner_.get()});
  daemonsStarted_++;
  return process.start(inherited);
}

void Server::startDaemon() {
  Fd link;
  if (const int error = startProcess(supervisor_, link); error != 0) {
    log(Level::error, "the daemon cannot be started", field("error", errorText(error)));
    return;
  }
  attachDaemon(std::move(link));
}

void Server::attachDaemon(Fd link) {
  channel_.attach(std::move(link));
  reader_ = {};
  lastHeard_ = Clock::now();
  add(epoll_.get(), channel_.fd(), EPOLLIN | EPOLLOUT | EPOLLET, Event::link);
  channel_.greet(link::hello(static_cast<std::uint32_t>(::getpid()), "bobbin-fuse"));
}

// --- events ----------------------------------------------------------------------------------------

void Server::onSignals() {
  signalfd_siginfo info{};
  while (::read(signals_.get(), &info, sizeof info) == sizeof info) {
    switch (info.ssi_signo) {
      case SIGCHLD:
        if (const auto exitCode = supervisor_.reap()) onDaemonEnd(*exitCode);
        onSuccessor();
        break;
      case SIGUSR2:
        wantsUpgrade_ = true;
        endReload("another reload was asked for meanwhile");
        if (info.ssi_code == SI_QUEUE && info.ssi_int > 0) reloadAsker_ = info.ssi_int;
        break;
      default:
        if (!isStopping_)
          log(Level::info, "bobbin-fuse stops",
              field("reason", ::strsignal(static_cast<int>(info.ssi_signo))));
        stopNow();
    }
  }
}

void Server::onDaemonEnd(int exitCode) {
  const std::string ended = supervisor_.program();
  channel_.detach();
  callers_.drop();
  reader_ = {};
  if (isStopping_ || isStoppedByDaemon_) {
    stopNow();
    exitCode_ = isStoppedByDaemon_ ? exitCode : 0;
    return;
  }
  // It never worked, and nobody needs it: whoever started us wants to know.
  if (!supervisor_.hasEverGreeted() && mounts_.empty()) {
    exitCode_ = exitCode == 0 ? EXIT_FAILED : exitCode;
    return;
  }
  const bool isRenewed = std::exchange(renewed_, 0) != 0;
  log(isRenewed ? Level::info : Level::error,
      isRenewed ? "the daemon has ended for its successor" : "the daemon has ended and is started again",
      field("exitCode", exitCode) + "," +
          field("waiting", static_cast<std::int64_t>(shared_.parked.waiting())));
  if (successor_) return successor_->hasGreeted ? promoteSuccessor() : void();
  if (supervisor_.hasFallenBack()) {
    notReplaced_ = "the daemon " + ended + " " + endText(exitCode) + " before it served anybody; the one that worked last is started again: look at the log";
    log(Level::error, "a daemon does not start, and the one that worked last is started again",
        field("program", ended) + "," + field("exitCode", exitCode));
  }
  if (!isRenewed) endReload("the new daemon " + endText(exitCode) + ": look at the log");
  if (Clock::now() >= supervisor_.nextStart()) startDaemon();
}

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

void Server::onTick() {
  std::uint64_t times = 0;
  ignoreResult(::read(timer_.get(), &times, sizeof times));
  const auto now = Clock::now();
  auto swept = shared_.parked.sweep(now);
  if (!swept.expired.empty())
    log(Level::error, "readers have waited too long and get EIO",
        field("readers", static_cast<std::int64_t>(swept.expired.size())));
  fail(swept.expired, EIO);
  fail(swept.killed, EINTR);
  for (const auto request : swept.cancelled) channel_.send(link::cancel(request));
  sendAccesses();
  callers_.sweep(now);

  if (renewed_ != 0 && now >= killAt_) {
    log(Level::error, "the daemon does not end for its successor and is killed");
    supervisor_.signal(SIGKILL);
    killAt_ = now + END_MAX;
  }
  onSuccessor();
  if (supervisor_.child() == 0) {
    if (!isStopping_ && !successor_ && now >= supervisor_.nextStart()) startDaemon();
    return;
  }
  if (isStopping_) {
    if (now >= killAt_) {
      log(Level::error, "the daemon does not end and is killed");
      supervisor_.signal(SIGKILL);
    }
    return;
  }
  if (!supervisor_.hasGreeted()) {
    if (now - supervisor_.startedAt() > GREETING_MAX) dropLink("it did not say hello in time");
    return;
  }
  const seconds silence = std::min(SILENCE_MAX, std::max(seconds{1}, options_.patience / 2));
  if (!shared_.parked.isEmpty() && now - lastHeard_ > silence) dropLink("it does not answer");
  if (channel_.queued() > QUEUED_MAX) dropLink("it does not read");
}

void Server::onMountTable() {
  const auto table = readMountTable();
  for (auto& [id, mount] : mounts_) {
    if (!mount->isMounted(table)) close(*mount);
  }
}

void Server::close(Mount& mount) {
  if (mount.record().isClosed) return;
  mount.hasLeft();
  channel_.send(link::closed(mount.id()));
}

void Server::onEnded() {
  eventfd_t count = 0;
  ::eventfd_read(wake_.get(), &count);
  std::vector<std::uint32_t> ended;
  {
    const std::lock_guard lock(endedMutex_);
    ended.swap(ended_);
  }
  for (const auto id : ended) {
    const auto found = mounts_.find(id);
    if (found == mounts_.end()) continue;
    sendAccesses();
    close(*found->second);
    removeDescriptors(*found->second);
    // Also of requests that waited: nobody is there to be answered.
    for (const auto request : shared_.parked.drop(id)) channel_.send(link::cancel(request));
    mounts_.erase(found);
    channel_.send(link::ended(id));
  }
}

void Server::sendAccesses() {
  if (!channel_.isOpen() || channel_.queued() > QUEUED_FOR_ACCESSES_MAX) return;
  for (auto& [id, mount] : mounts_) {
    const link::Buffer frame = mount->takeAccesses();
    if (!frame.empty()) channel_.send(frame);
  }
}

// --- frames ----------------------------------------------------------------------------------------

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

void Server::onCaller(std::uint64_t number) {
  if (!callers_.receive(number)) return;
  const Caller& caller = *callers_.find(number);
  if (!channel_.isOpen()) return callers_.drop();
  channel_.send(link::asked(number, caller.uid, caller.gid, caller.line));
}

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

// --- ends ------------------------------------------------------------------------------------------

void Server::stopNow() {
  if (isStopping_) return;
  isStopping_ = true;
  manager_.notify("STOPPING=1");
  endSuccessor();
  sendAccesses();
  for (auto& [id, mount] : mounts_) {
    const std::string& mountpoint = mount->record().request.mountpoint;
    const auto fields = [&mountpoint](const Detached& detached) {
      return field("mountpoint", mountpoint) + "," + field("error", detached.message);
    };
    Detached detached = mount->unmount(false);
    if (detached.outcome == link::UnmountOutcome::busy) {
      log(Level::warn, "a mount is in use and is detached: its open files end with us", fields(detached));
      detached = mount->unmount(true);
    }
    if (detached.outcome != link::UnmountOutcome::done)
      log(Level::error, "a mount stays, and every call on it fails from now on: umount it", fields(detached));
  }
  for (const auto& [id, mount] : mounts_) removeDescriptors(*mount);
  killAt_ = Clock::now() + END_MAX;
  if (supervisor_.child() == 0)
    exitCode_ = 0;
  else
    supervisor_.signal(SIGTERM);
}

void Server::release() {
  mounts_.clear();
  const ActingAs owner(options_.daemonUser);
  doors_.remove();
  if (owner_) ignoreResult(::ftruncate(owner_.get(), 0));
}

// --- succession ------------------------------------------------------------------------------------

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

void Server::renewDaemon() {
  const char* asker = ::getenv(RELOAD_VARIABLE);
  if (asker == nullptr) return;
  reloadAsker_ = std::atoi(asker);
  ::unsetenv(RELOAD_VARIABLE);
  // None: the one that is started now is new.
  if (supervisor_.child() == 0 || exitCode_) return;
  successor_.emplace(Successor{link::Supervisor(supervisor_.command(), supervisor_.user()), Fd(), false});
  if (const int error = startProcess(successor_->process, successor_->link); error != 0)
    return giveUpSuccessor("cannot be started: " + errorText(error));
  add(epoll_.get(), successor_->link.get(), EPOLLIN | EPOLLRDHUP | EPOLLET, Event::successor);
}

// The old daemon is told to end when its successor has said hello. The successor waits meanwhile for ours.
void Server::onSuccessor() {
  if (!successor_) return;
  if (const auto exitCode = successor_->process.reap()) return giveUpSuccessor(endText(*exitCode));
  if (!successor_->hasGreeted) {
    switch (greetingAt(successor_->link.get())) {
      case Greeting::none:
        if (Clock::now() - successor_->process.startedAt() > GREETING_MAX) giveUpSuccessor("did not say hello in time");
        return;
      case Greeting::other:
        return giveUpSuccessor("speaks another version of the link");
      case Greeting::ours:
        successor_->hasGreeted = true;
        ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, successor_->link.get(), nullptr);
    }
  }
  if (supervisor_.child() == 0) return promoteSuccessor();
  if (renewed_ != 0) return;
  renewed_ = supervisor_.child();
  killAt_ = Clock::now() + END_MAX;
  supervisor_.signal(SIGTERM);
}

void Server::promoteSuccessor() {
  supervisor_.take(successor_->process);
  Fd link = std::move(successor_->link);
  successor_.reset();
  attachDaemon(std::move(link));
}

void Server::giveUpSuccessor(const std::string& why) {
  notReplaced_ = "the new daemon " + successor_->process.program() + " " + why + ": look at the log";
  if (supervisor_.child() != 0 && renewed_ == 0) notReplaced_ += "; process " + std::to_string(supervisor_.child()) + " goes on";
  log(Level::error, "the new daemon does not start", field("program", successor_->process.program()) + "," + field("error", why));
  endSuccessor();
  endReload(notReplaced_);
  if (supervisor_.child() == 0 && Clock::now() >= supervisor_.nextStart()) startDaemon();
}

void Server::endSuccessor() {
  if (!successor_) return;
  if (const pid_t child = successor_->process.child(); child != 0) {
    successor_->process.signal(SIGKILL);
    ::waitpid(child, nullptr, 0);
  }
  successor_.reset();
}

void Server::endReload(const std::string& problem) {
  const int asker = std::exchange(reloadAsker_, 0);
  if (asker == 0) return;
  const ActingAs owner(options_.daemonUser);
  answerReload(options_.cache, asker, problem);
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
