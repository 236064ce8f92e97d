#include "session/reload.hpp"

#include <fcntl.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <climits>
#include <csignal>
#include <cstdio>
#include <thread>

#include "link/system.hpp"

namespace bobbin {

namespace {

using namespace std::chrono_literals;

// A daemon has 20 s to end and 60 s to greet; systemd gives a reload 90 s.
constexpr auto ANSWER_MAX = 85s;
constexpr auto POLL = 20ms;
constexpr std::size_t ANSWER_BYTES_MAX = 4096;
constexpr const char* DONE = "done";

std::string answerPath(const std::string& cache, int asker) {
  return cache + "/tmp/" + std::to_string(asker) + "-reload";
}

int refuse(const std::string& problem) {
  std::fprintf(stderr, "bobbin-fuse: not reloaded: %s\n", problem.c_str());
  return 1;
}

// Empty: not there yet, or not whole.
std::string readAnswer(const std::string& path) {
  const Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  std::string text(ANSWER_BYTES_MAX, '\0');
  const auto n = file ? ::read(file.get(), text.data(), text.size()) : -1;
  text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  return text.ends_with('\n') ? text.substr(0, text.size() - 1) : "";
}

// Whether the process runs the file that we run: systemd has started us by the path that the unit names.
bool isOurProgram(pid_t process) {
  struct stat ours {
  }, theirs{};
  const std::string path = "/proc/" + std::to_string(process) + "/exe";
  return ::stat("/proc/self/exe", &ours) == 0 && ::stat(path.c_str(), &theirs) == 0 &&
         ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

}  // namespace

int reloadOther(pid_t process, const std::string& cache) {
  const std::string path = answerPath(cache, ::getpid());
  ::unlink(path.c_str());
  sigval asker{};
  asker.sival_int = ::getpid();
  if (::sigqueue(process, SIGUSR2, asker) != 0)
    return refuse("cannot signal process " + std::to_string(process) + ": " + errorText(errno));
  for (const auto deadline = Clock::now() + ANSWER_MAX; Clock::now() < deadline; std::this_thread::sleep_for(POLL)) {
    const std::string answer = readAnswer(path);
    if (answer.empty()) {
      if (::kill(process, 0) != 0 && errno == ESRCH) return refuse("process " + std::to_string(process) + " has ended");
      continue;
    }
    ::unlink(path.c_str());
    if (answer != DONE) return refuse(answer);
    if (!isOurProgram(process))
      return refuse("process " + std::to_string(process) + " was started by another path, and runs another program than " + startedAs() + ": restart it");
    return 0;
  }
  return refuse("process " + std::to_string(process) + " does not answer: look at its log, and restart it");
}

void answerReload(const std::string& cache, int asker, const std::string& problem) {
  const std::string path = answerPath(cache, asker);
  const Fd file(::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0640));
  const std::string line = (problem.empty() ? DONE : problem.substr(0, ANSWER_BYTES_MAX - 1)) + "\n";
  if (!file || ::write(file.get(), line.data(), line.size()) != static_cast<ssize_t>(line.size()))
    log(Level::warn, "nobody can be told what became of the reload", field("error", errorText(errno)));
}

std::string startedAs() {
  char resolved[PATH_MAX];
  const auto n = ::readlink("/proc/self/exe", resolved, sizeof resolved);
  const auto* named = reinterpret_cast<const char*>(::getauxval(AT_EXECFN));  // NOLINT(performance-no-int-to-ptr)
  const std::string path = named == nullptr ? "" : named;
  // It was started by a descriptor: then nobody has named a path.
  if (path.empty() || path.starts_with("/dev/fd/"))
    return n > 0 ? std::string(resolved, static_cast<std::size_t>(n)) : "";
  if (path.starts_with('/')) return path;
  char here[PATH_MAX];
  return ::getcwd(here, sizeof here) == nullptr ? path : std::string(here) + "/" + path;
}

}  // namespace bobbin
