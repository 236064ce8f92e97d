// bobbin-fuse: the mounts, the daemon, and everything that happens between them, on one thread. Workers
// (mount.hpp) have threads of their own.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "link/channel.hpp"
#include "link/service_manager.hpp"
#include "link/supervisor.hpp"
#include "session/callers.hpp"
#include "session/doors.hpp"
#include "session/mount.hpp"
#include "session/privileges.hpp"

namespace bobbin {

struct ServerOptions {
  std::string cache;
  // The owner's door to the daemon's API; the others lie beside it (doors.hpp).
  std::string socket;
  unsigned threads = 2;
  // Folders that mountpoints must lie in; empty: anywhere.
  std::vector<std::string> mountBelow;
  // How long a reader waits without a sign of progress.
  std::chrono::seconds patience{60};
  bool withoutPassthrough = false;
  bool withoutResend = false;
  bool withoutAccesses = false;
  std::vector<std::string> command;
  // The daemon's user, where it has one of its own; the cache is that user's.
  std::optional<Account> daemonUser;
  // Others may mount, too, on folders of their own.
  bool isForGroup = false;
  // To start again, in place.
  std::string executable;
  std::vector<std::string> arguments;
};

// A daemon that was started beside the one that works, to take its place: that one is given up when this one has said hello.
struct Successor {
  link::Supervisor process;
  // Its hello stays in there until it is the daemon.
  Fd link;
  bool hasGreeted = false;
};

// As the command line has them (cli/exit-codes.ts).
inline constexpr int EXIT_FAILED = 1;
inline constexpr int EXIT_CACHE_IN_USE = 11;
inline constexpr int EXIT_ACCESS_DENIED = 12;

// How long a daemon that is told to end may take to put its store away.
inline constexpr std::chrono::seconds END_MAX{20};
// For one that was just started, to say hello.
inline constexpr std::chrono::seconds GREETING_MAX{60};

// Why this process ends before it serves anything.
struct Refusal {
  std::string problem;
  int exitCode = 0;
};

class Server {
 public:
  explicit Server(ServerOptions options);
  ~Server();

  // Until it is told to stop. The exit code of the process.
  int run();

 private:
  // Each says what is wrong, or nothing.
  std::optional<Refusal> refuseForeignCache() const;
  std::optional<Refusal> takeCache();
  int openCache();
  void writeOwner();
  std::string watch();
  bool restore(int state);
  void recover(std::map<std::string, Fd> stored);

  void startDaemon();
  // The command, our end of its link and 0; or an errno.
  int startProcess(link::Supervisor& process, Fd& link);
  // Greets the daemon that was just started, at our end of its link.
  void attachDaemon(Fd link);
  void onDaemonEnd(int exitCode);
  void onEvent(std::uint64_t event);
  void onLink();
  void onSignals();
  void onTick();
  void onMountTable();
  void onCaller(std::uint64_t number);
  void onEnded();
  void dropLink(const char* why);

  void take(const link::Hello& frame);
  void take(const link::Ready& frame);
  void take(const link::Failed& frame);
  void take(const link::Working& frame);
  void take(const link::Known& frame);
  void take(const link::EvictAsk& frame);
  void take(const link::Mount& frame);
  void take(const link::Unmount& frame);
  void take(const link::Index& frame);
  void take(const link::Logged& frame);
  void take(const link::Answer& frame);
  void take(const link::Serving& frame);
  void take(const link::Keep& frame);
  void take(const link::Stop& frame);
  void take(const link::StatsAsk& frame);

  link::EvictOutcome evict(const link::ObjectName& name);
  void handleAgain(std::vector<ParkedRequest>& requests);
  void fail(const std::vector<ParkedRequest>& requests, int error);
  void close(Mount& mount);
  void sendAccesses();
  void storeDescriptors(const Mount& mount);
  void removeDescriptors(const Mount& mount);
  static std::vector<std::pair<std::string, int>> descriptorsOf(const Mount& mount, int record);
  void stopNow();
  void upgrade();
  bool isFitToUpgrade() const;
  // Replaces the daemon, after we were replaced.
  void renewDaemon();
  void onSuccessor();
  void promoteSuccessor();
  // The daemon that runs is kept. `why`: what became of the other one.
  void giveUpSuccessor(const std::string& why);
  void endSuccessor();
  // Tells whoever has asked for a reload what became of it: nothing is wrong, or what is.
  void endReload(const std::string& problem);
  Fd saveState() const;
  std::vector<int> inheritedDescriptors() const;
  // The cache's lock and sockets, given back.
  void release();

  ServerOptions options_;
  Shared shared_;
  link::ServiceManager manager_;
  // Mounts that would end with us, though the service manager keeps others.
  std::set<std::uint32_t> unkept_;
  link::Supervisor supervisor_;
  std::optional<Successor> successor_;
  // Why the daemon is not the one that lies at its paths; empty: it is that one.
  std::string notReplaced_;
  std::uint64_t daemonsStarted_ = 0;
  link::Channel channel_;
  link::FrameReader reader_;
  std::map<std::uint32_t, std::unique_ptr<Mount>> mounts_;
  std::uint32_t lastMount_ = 0;

  Fd owner_;
  Doors doors_;
  Callers callers_;
  Fd epoll_;
  Fd signals_;
  Fd timer_;
  Fd wake_;
  Fd mountTable_;
  std::mutex endedMutex_;
  std::vector<std::uint32_t> ended_;

  Clock::time_point lastHeard_;
  bool isReady_ = false;
  bool isStopping_ = false;
  bool isStoppedByDaemon_ = false;
  bool wantsUpgrade_ = false;
  // The process that has asked for a reload and waits for the answer; 0: none.
  int reloadAsker_ = 0;
  // The daemon that is to end for it; 0: none, or it has ended.
  pid_t renewed_ = 0;
  Clock::time_point killAt_;
  std::optional<int> exitCode_;
};

// Of what one bobbin-fuse leaves to the next: a newer one that has another is not executed in place.
inline constexpr std::uint32_t STATE_VERSION = 8;
// Where the next one finds that, and whom to answer: a descriptor and a process, in its environment.
inline constexpr const char* STATE_VARIABLE = "BOBBIN_FUSE_STATE";
inline constexpr const char* RELOAD_VARIABLE = "BOBBIN_FUSE_RELOAD";

}  // namespace bobbin
