// bobbin-fuse: serves mounts of Quilt packages, and keeps the daemon alive that fetches for them.
#include <getopt.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "session/leftover.hpp"
#include "session/privileges.hpp"
#include "session/reload.hpp"
#include "session/server.hpp"

namespace {

constexpr const char* VERSION_TEXT = BOBBIN_VERSION;
constexpr int EXIT_USAGE = 2;
// Of --syncfs.
constexpr int EXIT_LOST = 1;
constexpr int SYNCFS_FD = 3;
constexpr unsigned THREADS_MAX = 8;

constexpr const char* HELP =
    R"(usage: bobbin-fuse --cache DIR [options] -- COMMAND [ARGUMENT]...

Serves the mounts of one cache. COMMAND is the daemon, which fetches what is not there: it is started with
its sockets and the cache's lock handed to it, and started again whenever it dies. People use `bobbin mount`
and `bobbin daemon`, which start this program.

  --cache DIR           the cache folder; its owner is this process
  --socket PATH         where the owner reaches the daemon (default: DIR/daemon.sock); beside it lie the sockets
                        for the group, PATH with .leases.sock and .status.sock
  --user NAME           becomes this user, and keeps CAP_SYS_ADMIN alone
  --daemon-user NAME    the daemon is this user, and so are the cache and its sockets; with another --user, the
                        daemon can neither signal nor trace bobbin-fuse, which keeps what it needs to start it
  --mount-below DIR     mounts only below this folder (may be repeated); give it with --user, since the daemon
                        then asks for mounts that it could not make by itself
  --mounts-for-group    who may open PATH with .mounts.sock mounts too: packages that the daemon serves to others
                        (BOBBIN_ALLOW), on an empty folder of their own below --mount-below, for themselves alone
  --threads N           threads a mount (default: one a core, 2 to 8)
  --patience SECONDS    a reader waits so long without a sign of progress, then gets EIO (default: 60)
  --version, --help
  --state-version       which state of another bobbin-fuse it can take over
  --syncfs              syncs the file system of descriptor 3, and ends with 1 if it has lost something that was
                        written since 3 was opened, or last synced so
  --reload PROCESS --cache DIR
                        another bobbin-fuse and its daemon are replaced by what lies at their paths now; ends with 1, and
                        says why, when they are not both replaced (`systemctl reload` runs this)
  --unmount PATH --mount-id N [--lazy]
                        unmounts a mount of ours that nobody else does; ends with 3 when there is no such mount, 4 when
                        it is in use, 5 when something else is at PATH, or on or inside the mount

SIGTERM, SIGINT and SIGHUP unmount everything and end it; SIGUSR2 replaces it by the file at the path that it was started
by, without losing a mount or a request; --reload does that, and replaces the daemon, too. With NOTIFY_SOCKET it says READY=1 and stores its connections (FileDescriptorStoreMax=).
BOBBIN_FUSE_WITHOUT=passthrough,resend plays an older kernel; accesses switches the access log off.
)";

int refuse(const std::string& problem) {
  std::fprintf(stderr, "bobbin-fuse: %s (bobbin-fuse --help)\n", problem.c_str());
  return EXIT_USAGE;
}

int refuseUser(const std::string& name, const std::string& option) {
  bobbin::log(bobbin::Level::error, "there is no user " + name + " (" + option + ")");
  return 1;
}

// Nothing: no number from `min` to `max`.
bool readNumber(const char* text, unsigned min, unsigned max, unsigned& number) {
  char* end = nullptr;
  const unsigned long value = std::strtoul(text, &end, 10);
  if (*text < '0' || *text > '9' || *end != '\0' || value < min || value > max) return false;
  number = static_cast<unsigned>(value);
  return true;
}

int unmountOnce(const std::string& path, unsigned mountId, bool isLazy) {
  if (mountId == 0) return refuse("--unmount needs --mount-id");
  const auto [outcome, message] = bobbin::unmountLeftover(path, static_cast<int>(mountId), isLazy);
  if (!message.empty()) std::fprintf(stderr, "%s\n", message.c_str());
  return static_cast<int>(outcome);
}

}  // namespace

int main(int argc, char** argv) {
  bobbin::ServerOptions options;
  options.executable = bobbin::startedAs();
  options.arguments.assign(argv, argv + argc);
  options.threads = std::min(THREADS_MAX, std::max(2U, std::thread::hardware_concurrency()));
  std::optional<bobbin::Account> user;
  std::optional<std::string> leftover;
  unsigned leftoverId = 0;
  unsigned reloaded = 0;
  bool isLazy = false;
  enum Option { cache = 1, socket, userName, daemonUser, mountsForGroup, mountBelow, threads, patience, version, help, stateVersion, syncfs, unmount, mountId, lazy, reload };
  const option known[] = {{"cache", required_argument, nullptr, cache},
                          {"socket", required_argument, nullptr, socket},
                          {"user", required_argument, nullptr, userName},
                          {"daemon-user", required_argument, nullptr, daemonUser},
                          {"mounts-for-group", no_argument, nullptr, mountsForGroup},
                          {"mount-below", required_argument, nullptr, mountBelow},
                          {"threads", required_argument, nullptr, threads},
                          {"patience", required_argument, nullptr, patience},
                          {"version", no_argument, nullptr, version},
                          {"help", no_argument, nullptr, help},
                          {"state-version", no_argument, nullptr, stateVersion},
                          {"syncfs", no_argument, nullptr, syncfs},
                          {"unmount", required_argument, nullptr, unmount},
                          {"mount-id", required_argument, nullptr, mountId},
                          {"lazy", no_argument, nullptr, lazy},
                          {"reload", required_argument, nullptr, reload},
                          {nullptr, 0, nullptr, 0}};
  for (int found; (found = ::getopt_long(argc, argv, "+", known, nullptr)) != -1;) {
    unsigned number = 0;
    switch (found) {
      case cache:
        options.cache = optarg;
        break;
      case socket:
        options.socket = optarg;
        break;
      case userName:
        user = bobbin::findAccount(optarg);
        if (!user) return refuseUser(optarg, "--user");
        break;
      case daemonUser:
        options.daemonUser = bobbin::findAccount(optarg);
        if (!options.daemonUser) return refuseUser(optarg, "--daemon-user");
        break;
      case mountsForGroup:
        options.isForGroup = true;
        break;
      case mountBelow:
        if (optarg[0] != '/') return refuse("--mount-below takes an absolute path");
        options.mountBelow.emplace_back(optarg);
        while (options.mountBelow.back().ends_with('/')) options.mountBelow.back().pop_back();
        break;
      case threads:
        if (!readNumber(optarg, 1, 64, options.threads))
          return refuse("--threads takes a number from 1 to 64");
        break;
      case patience:
        if (!readNumber(optarg, 1, 86'400, number)) return refuse("--patience takes seconds, 1 to 86400");
        options.patience = std::chrono::seconds(number);
        break;
      case version:
        std::printf("bobbin-fuse %s\n", VERSION_TEXT);
        return 0;
      case help:
        std::fputs(HELP, stdout);
        return 0;
      case stateVersion:
        std::printf("%u\n", bobbin::STATE_VERSION);
        return 0;
      case syncfs:
        if (::syncfs(SYNCFS_FD) == 0) return 0;
        return errno == EBADF ? EXIT_USAGE : EXIT_LOST;
      case unmount:
        leftover = optarg;
        break;
      case mountId:
        if (!readNumber(optarg, 1, INT_MAX, leftoverId)) return refuse("--mount-id takes a number");
        break;
      case lazy:
        isLazy = true;
        break;
      case reload:
        if (!readNumber(optarg, 1, INT_MAX, reloaded)) return refuse("--reload takes the number of a process");
        break;
      default:
        return EXIT_USAGE;
    }
  }
  if (leftover) return unmountOnce(*leftover, leftoverId, isLazy);
  if (reloaded != 0) {
    if (options.cache.empty() || options.cache[0] != '/') return refuse("--reload needs --cache, an absolute path");
    return bobbin::reloadOther(static_cast<pid_t>(reloaded), options.cache);
  }
  options.command.assign(argv + optind, argv + argc);
  if (options.command.empty()) return refuse("no command: it has to start a daemon");
  if (options.cache.empty() || options.cache[0] != '/') return refuse("--cache takes an absolute path");
  if (options.isForGroup && options.mountBelow.empty())
    return refuse("--mounts-for-group needs --mount-below: the folders that others may mount in");
  if (options.socket.empty()) options.socket = options.cache + "/daemon.sock";
  // The daemon writes down where it is reached.
  ::setenv("BOBBIN_SOCKET", options.socket.c_str(), 1);
  ::setenv("BOBBIN_FUSE_VERSION", VERSION_TEXT, 1);
  // And that there is a door for others.
  if (options.isForGroup) ::setenv("BOBBIN_MOUNTS_FOR_GROUP", "1", 1);
  if (const char* without = std::getenv("BOBBIN_FUSE_WITHOUT")) {
    options.withoutPassthrough = std::strstr(without, "passthrough") != nullptr;
    options.withoutResend = std::strstr(without, "resend") != nullptr;
    options.withoutAccesses = std::strstr(without, "accesses") != nullptr;
  }
  if (const std::string problem = bobbin::dropPrivileges(user, options.daemonUser); !problem.empty()) {
    bobbin::log(bobbin::Level::error, problem);
    return 1;
  }
  bobbin::Server server(std::move(options));
  return server.run();
}
