#include "session/server.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "session/privileges.hpp"
#include "session/server_events.hpp"

namespace bobbin {

namespace {

using std::chrono::seconds;

// A daemon that has questions to answer and says nothing is stuck.
constexpr seconds SILENCE_MAX{30};
constexpr std::size_t QUEUED_MAX = 64U << 20U;
// Access records are given up before that.
constexpr std::size_t QUEUED_FOR_ACCESSES_MAX = 8U << 20U;

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
    notReplaced_ = "the daemon " + ended + " " + link::endText(exitCode) + " before it served anybody; the one that worked last is started again: look at the log";
    log(Level::error, "a daemon does not start, and the one that worked last is started again",
        field("program", ended) + "," + field("exitCode", exitCode));
  }
  if (!isRenewed) endReload("the new daemon " + link::endText(exitCode) + ": look at the log");
  if (Clock::now() >= supervisor_.nextStart()) startDaemon();
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

void Server::onCaller(std::uint64_t number) {
  if (!callers_.receive(number)) return;
  const Caller& caller = *callers_.find(number);
  if (!channel_.isOpen()) return callers_.drop();
  channel_.send(link::asked(number, caller.uid, caller.gid, caller.line));
}

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

}  // namespace bobbin
