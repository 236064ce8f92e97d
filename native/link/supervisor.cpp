#include "link/supervisor.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <climits>
#include <csignal>
#include <cstdlib>
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

bool isFile(const std::string& path) {
  struct stat stats {};
  return path.starts_with('/') && ::stat(path.c_str(), &stats) == 0 && S_ISREG(stats.st_mode);
}

// A command whose files are named by where links lead now.
std::vector<std::string> resolved(std::vector<std::string> command) {
  char path[PATH_MAX];
  for (auto& argument : command) {
    if (isFile(argument) && ::realpath(argument.c_str(), path) != nullptr) argument = path;
  }
  return command;
}

// Whether each file of a resolved command that another one has otherwise is still there.
bool isThere(const std::vector<std::string>& command, const std::vector<std::string>& other) {
  for (std::size_t i = 0; i < command.size(); i++) {
    if (command[i] != other[i] && !isFile(command[i])) return false;
  }
  return true;
}

void putCommand(wire::Writer& out, const std::vector<std::string>& command) {
  out.number(static_cast<std::uint32_t>(command.size()));
  for (const auto& argument : command) out.text(argument);
}

std::vector<std::string> takeCommand(wire::Reader& in) {
  std::vector<std::string> command(in.count(sizeof(std::uint32_t)));
  for (auto& argument : command) argument = in.text();
  return command;
}

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
  std::vector<std::string> command = hasFallenBack_ ? sound_ : command_;
  started_ = resolved(command);
  std::vector<char*> argv;
  for (auto& argument : command) argv.push_back(argument.data());
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
  hasServed_ = false;
  startedAt_ = Clock::now();
  return 0;
}

void Supervisor::take(const Supervisor& successor) {
  child_ = successor.child_;
  started_ = successor.started_;
  startedAt_ = successor.startedAt_;
  hasEverGreeted_ = hasEverGreeted();
  hasGreeted_ = false;
  hasServed_ = false;
  hasFallenBack_ = false;
}

void Supervisor::served() {
  hasServed_ = true;
  sound_ = started_;
}

std::string Supervisor::program() const {
  std::string files;
  for (const auto& argument : started_) {
    if (!isFile(argument)) continue;
    if (!files.empty()) files += " ";
    files += argument;
  }
  return files.empty() && !started_.empty() ? started_[0] : files;
}

void Supervisor::save(wire::Writer& out) const {
  out.number(child_).number(hasGreeted_).number(hasServed_).number(hasFallenBack_);
  putCommand(out, started_);
  putCommand(out, sound_);
}

void Supervisor::restore(wire::Reader& in) {
  child_ = in.number<pid_t>();
  hasGreeted_ = in.number<std::uint8_t>() != 0;
  hasServed_ = in.number<std::uint8_t>() != 0;
  hasFallenBack_ = in.number<std::uint8_t>() != 0;
  started_ = takeCommand(in);
  sound_ = takeCommand(in);
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
  // Of other lengths are commands that were given to another bobbin-fuse.
  hasFallenBack_ = !hasServed_ && !hasFallenBack_ && sound_ != started_ && sound_.size() == started_.size() &&
                   isThere(sound_, started_);
  if (hasFallenBack_) failures_ = 1;
  const auto longest = hasGreeted_ ? PAUSE_MAX_GREETED : PAUSE_MAX;
  if (failures_ > 1) nextStart_ += std::min(longest, PAUSE_MIN * (1U << std::min(failures_ - 2, 10U)));
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void Supervisor::signal(int number) const {
  if (child_ > 0) user_.kill(child_, number);
}

std::string endText(int exitCode) {
  if (exitCode > 128) return std::string("was ended by a signal (") + ::strsignal(exitCode - 128) + ")";
  return "ended with exit code " + std::to_string(exitCode);
}

}  // namespace bobbin::link
