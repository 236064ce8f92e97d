#include "link/supervisor.hpp"

#include <fcntl.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstring>

namespace bobbin::link {

namespace {
using std::chrono::milliseconds;
constexpr milliseconds PAUSE_MIN{100};
constexpr milliseconds PAUSE_MAX{5000};
// One that works, and is killed again and again: readers wait for the next.
constexpr milliseconds PAUSE_MAX_GREETED{400};
// Who lived so long has not failed at its start.
constexpr std::chrono::seconds SOUND_AFTER{1};
// The first descriptor that a child inherits; above stdin, stdout, stderr.
constexpr int FIRST_FD = 3;
constexpr int SAFE_FD = 32;

bool startsWith(const char* text, const std::string& prefix) {
  return std::strncmp(text, prefix.c_str(), prefix.size()) == 0;
}
}  // namespace

int Supervisor::start(const std::vector<Inherited>& inherited) {
  // Everything that allocates comes before the fork: other threads may hold the allocator's lock then.
  std::vector<std::string> variables;
  for (std::size_t i = 0; i < inherited.size(); i++)
    variables.push_back(inherited[i].variable + "=" + std::to_string(FIRST_FD + static_cast<int>(i)));
  std::vector<char*> environment;
  for (char** variable = environ; *variable != nullptr; variable++) {
    // What was meant for us alone.
    const bool isOurs = startsWith(*variable, "NOTIFY_SOCKET=") || startsWith(*variable, "LISTEN_") ||
                        startsWith(*variable, "BOBBIN_FUSE_STATE=") ||
                        startsWith(*variable, "BOBBIN_FUSE_RELOAD=") ||
                        std::any_of(inherited.begin(), inherited.end(), [&](const Inherited& item) {
                          return startsWith(*variable, item.variable + "=");
                        });
    if (!isOurs) environment.push_back(*variable);
  }
  for (auto& variable : variables) environment.push_back(variable.data());
  environment.push_back(nullptr);
  std::vector<char*> argv;
  for (auto& argument : command_) argv.push_back(argument.data());
  argv.push_back(nullptr);
  std::vector<int> moved(inherited.size());

  const pid_t child = ::fork();
  if (child < 0) return errno;
  if (child == 0) {
    sigset_t none;
    ::sigemptyset(&none);
    ::sigprocmask(SIG_SETMASK, &none, nullptr);
    ::signal(SIGPIPE, SIG_DFL);
    // Out of the way first, so that none is overwritten before it was copied.
    for (std::size_t i = 0; i < inherited.size(); i++)
      moved[i] = ::fcntl(inherited[i].fd, F_DUPFD_CLOEXEC, SAFE_FD);
    for (std::size_t i = 0; i < inherited.size(); i++) ::dup2(moved[i], FIRST_FD + static_cast<int>(i));
    if (!user_.become()) ::_exit(126);
    ::execvpe(argv[0], argv.data(), environment.data());
    ::_exit(127);
  }
  child_ = child;
  hasEverGreeted_ = hasEverGreeted();
  hasGreeted_ = false;
  startedAt_ = Clock::now();
  return 0;
}

void Supervisor::adopt(pid_t child, bool hasGreeted) {
  child_ = child;
  hasGreeted_ = hasGreeted;
  hasEverGreeted_ = true;
  startedAt_ = Clock::now();
}

std::optional<int> Supervisor::reap() {
  int status = 0;
  if (child_ == 0 || ::waitpid(child_, &status, WNOHANG) != child_) return std::nullopt;
  child_ = 0;
  const auto now = Clock::now();
  failures_ = hasGreeted_ && now - startedAt_ >= SOUND_AFTER ? 0 : failures_ + 1;
  // At once the first time: somebody is waiting.
  nextStart_ = now;
  const auto longest = hasGreeted_ ? PAUSE_MAX_GREETED : PAUSE_MAX;
  if (failures_ > 1) nextStart_ += std::min(longest, PAUSE_MIN * (1U << std::min(failures_ - 2, 10U)));
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void Supervisor::signal(int number) const {
  if (child_ > 0) user_.kill(child_, number);
}

}  // namespace bobbin::link
