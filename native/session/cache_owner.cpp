// The cache is one bobbin-fuse's: its lock, its owner file, and who may not begin there.
#include "session/server.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "session/privileges.hpp"

namespace bobbin {

namespace {

constexpr int LOCK_TRIES = 100;

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

// The number behind `"pid":` in what the owner of a cache has written.
std::string ownerOf(int fd) {
  char text[4096];
  const auto n = ::pread(fd, text, sizeof text - 1, 0);
  text[std::max<ssize_t>(n, 0)] = '\0';
  const char* at = std::strstr(text, "\"pid\":");
  return at == nullptr ? "another process" : "process " + std::to_string(std::atoi(at + 6));
}

}  // namespace

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
  if (const std::string problem = makeFolders(options_.cache); !problem.empty()) return failed(problem);
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

void Server::release() {
  mounts_.clear();
  const ActingAs owner(options_.daemonUser);
  doors_.remove();
  if (owner_) ignoreResult(::ftruncate(owner_.get(), 0));
}

}  // namespace bobbin
