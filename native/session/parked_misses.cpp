#include "session/parked_misses.hpp"

#include <fcntl.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>

#include "link/wire.hpp"
#include "protocol/messages.hpp"

namespace bobbin {

namespace {
constexpr std::uint64_t keyOf(std::uint32_t mount, std::uint32_t ino) {
  return (std::uint64_t{mount} << 32U) | ino;
}

fuse::RequestHeader headerOf(const link::Buffer& message) {
  fuse::RequestHeader header{};
  if (message.size() >= sizeof header) std::memcpy(&header, message.data(), sizeof header);
  return header;
}

constexpr std::uint64_t bitOf(int signal) { return 1ULL << static_cast<unsigned>(signal - 1); }

// The mask behind a name in /proc/PID/status, in hex.
std::uint64_t maskOf(const char* status, const char* name) {
  const char* at = std::strstr(status, name);
  return at == nullptr ? 0 : std::strtoull(at + std::strlen(name), nullptr, 16);
}
}  // namespace

std::uint64_t ParkedRequest::unique() const { return headerOf(message).unique; }
std::uint32_t ParkedRequest::pid() const { return headerOf(message).pid; }

bool isBeingEnded(std::uint32_t pid) {
  // Of another pid namespace than ours: then any signal counts.
  if (pid == 0) return true;
  char path[32];
  std::snprintf(path, sizeof path, "/proc/%u/status", pid);
  const Fd file(::open(path, O_RDONLY | O_CLOEXEC));
  char status[4096];
  const auto bytes = file ? ::read(file.get(), status, sizeof status - 1) : -1;
  if (bytes <= 0) return true;
  status[bytes] = '\0';
  const std::uint64_t pending =
      (maskOf(status, "\nSigPnd:\t") | maskOf(status, "\nShdPnd:\t")) & ~maskOf(status, "\nSigBlk:\t");
  const std::uint64_t caught = maskOf(status, "\nSigCgt:\t");
  const std::uint64_t ignored = maskOf(status, "\nSigIgn:\t");
  constexpr std::uint64_t harmless = bitOf(SIGCHLD) | bitOf(SIGURG) | bitOf(SIGWINCH) | bitOf(SIGCONT);
  constexpr std::uint64_t meant =
      bitOf(SIGKILL) | bitOf(SIGINT) | bitOf(SIGTERM) | bitOf(SIGHUP) | bitOf(SIGQUIT) | bitOf(SIGALRM);
  return (pending & (meant | (~caught & ~ignored & ~harmless))) != 0;
}

ParkedMisses::Miss* ParkedMisses::find(std::uint32_t mount, std::uint32_t ino) {
  const auto found = requestOf_.find(keyOf(mount, ino));
  return found == requestOf_.end() ? nullptr : &misses_.at(found->second);
}

ParkedMisses::Miss& ParkedMisses::add(std::uint32_t mount, std::uint32_t ino) {
  const std::uint64_t request = ++lastRequest_;
  requestOf_[keyOf(mount, ino)] = request;
  Miss& miss = misses_[request];
  miss.question = {.request = request, .mount = mount, .ino = ino};
  miss.deadline = Clock::now() + patience_;
  return miss;
}

std::optional<ParkedMisses::Question> ParkedMisses::park(std::uint32_t ino, ParkedRequest request) {
  const std::lock_guard lock(mutex_);
  Miss* miss = find(request.mount, ino);
  const bool isNew = miss == nullptr;
  if (isNew) miss = &add(request.mount, ino);
  // The kernel sends a request again after a crash of ours; the first copy can no longer be answered.
  std::erase_if(miss->requests, [&](const ParkedRequest& other) {
    return other.mount == request.mount &&
           (other.unique() & ~fuse::UNIQUE_RESENT) == (request.unique() & ~fuse::UNIQUE_RESENT);
  });
  miss->requests.push_back(std::move(request));
  if (!isNew) return std::nullopt;
  return miss->question;
}

std::optional<ParkedMisses::Answered> ParkedMisses::answer(std::uint64_t request) {
  const std::lock_guard lock(mutex_);
  const auto found = misses_.find(request);
  if (found == misses_.end() || found->second.question.ino == 0) return std::nullopt;
  Answered answered{.question = found->second.question, .requests = std::move(found->second.requests)};
  requestOf_.erase(keyOf(answered.question.mount, answered.question.ino));
  misses_.erase(found);
  return answered;
}

std::vector<ParkedRequest> ParkedMisses::answerIndex(std::uint32_t mount) {
  const std::lock_guard lock(mutex_);
  Miss* miss = find(mount, 0);
  if (miss == nullptr) return {};
  std::vector<ParkedRequest> requests = std::move(miss->requests);
  misses_.erase(miss->question.request);
  requestOf_.erase(keyOf(mount, 0));
  return requests;
}

ParkedMisses::Interrupted ParkedMisses::interrupt(std::uint32_t mount, std::uint64_t unique) {
  const std::lock_guard lock(mutex_);
  Interrupted interrupted;
  for (auto miss = misses_.begin(); miss != misses_.end(); ++miss) {
    auto& requests = miss->second.requests;
    const auto found = std::find_if(requests.begin(), requests.end(), [&](const ParkedRequest& request) {
      return request.mount == mount && request.unique() == unique;
    });
    if (found == requests.end()) continue;
    if (!isBeingEnded(found->pid())) {
      // The kernel tells us of the first signal only; the sweep looks for later ones.
      found->isInterrupted = true;
      interrupted.outcome = Interrupt::waits;
      return interrupted;
    }
    interrupted.outcome = Interrupt::gone;
    interrupted.request = std::move(*found);
    requests.erase(found);
    if (requests.empty() && miss->second.question.ino != 0) {
      interrupted.cancelled = miss->first;
      requestOf_.erase(keyOf(mount, miss->second.question.ino));
      misses_.erase(miss);
    }
    return interrupted;
  }
  return interrupted;
}

void ParkedMisses::progress(const std::vector<std::uint64_t>& requests) {
  const std::lock_guard lock(mutex_);
  const auto deadline = Clock::now() + patience_;
  for (const auto request : requests) {
    const auto found = misses_.find(request);
    if (found != misses_.end()) found->second.deadline = deadline;
  }
}

ParkedMisses::Swept ParkedMisses::sweep(Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  Swept swept;
  for (auto miss = misses_.begin(); miss != misses_.end();) {
    auto& requests = miss->second.requests;
    const bool hadReaders = !requests.empty();
    if (now >= miss->second.deadline) {
      std::move(requests.begin(), requests.end(), std::back_inserter(swept.expired));
      requests.clear();
    } else {
      for (auto request = requests.begin(); request != requests.end();) {
        if (!request->isInterrupted || !isBeingEnded(request->pid())) {
          ++request;
          continue;
        }
        swept.killed.push_back(std::move(*request));
        request = requests.erase(request);
      }
    }
    const bool isOver = requests.empty() && (hadReaders || now >= miss->second.deadline);
    if (!isOver) {
      ++miss;
      continue;
    }
    const Question& question = miss->second.question;
    if (question.ino != 0) swept.cancelled.push_back(question.request);
    requestOf_.erase(keyOf(question.mount, question.ino));
    miss = misses_.erase(miss);
  }
  return swept;
}

std::vector<ParkedMisses::Question> ParkedMisses::questions() const {
  const std::lock_guard lock(mutex_);
  std::vector<Question> questions;
  questions.reserve(misses_.size());
  for (const auto& [request, miss] : misses_) questions.push_back(miss.question);
  return questions;
}

std::vector<std::uint64_t> ParkedMisses::drop(std::uint32_t mount) {
  const std::lock_guard lock(mutex_);
  std::vector<std::uint64_t> dropped;
  std::erase_if(misses_, [&](const auto& item) {
    const Question& question = item.second.question;
    if (question.mount != mount) return false;
    if (question.ino != 0) dropped.push_back(question.request);
    requestOf_.erase(keyOf(question.mount, question.ino));
    return true;
  });
  return dropped;
}

std::size_t ParkedMisses::waiting() const {
  const std::lock_guard lock(mutex_);
  return misses_.size();
}

link::Buffer ParkedMisses::save() const {
  const std::lock_guard lock(mutex_);
  wire::Writer out;
  out.number(lastRequest_).number(static_cast<std::uint32_t>(misses_.size()));
  for (const auto& [request, miss] : misses_) {
    out.number(request).number(miss.question.mount).number(miss.question.ino);
    // The clock goes on over an execve.
    out.number(static_cast<std::int64_t>(miss.deadline.time_since_epoch().count()));
    out.number(static_cast<std::uint32_t>(miss.requests.size()));
    for (const auto& parked : miss.requests) {
      out.number(parked.channel).number(parked.attempts).number(parked.isInterrupted);
      out.number(static_cast<std::uint32_t>(parked.message.size())).raw(parked.message);
    }
  }
  return std::move(out.bytes());
}

bool ParkedMisses::restore(std::span<const std::uint8_t> saved) {
  const std::lock_guard lock(mutex_);
  wire::Reader in(saved);
  lastRequest_ = in.number<std::uint64_t>();
  for (auto count = in.number<std::uint32_t>(); count > 0 && in.isWhole(); count--) {
    Miss miss;
    miss.question.request = in.number<std::uint64_t>();
    miss.question.mount = in.number<std::uint32_t>();
    miss.question.ino = in.number<std::uint32_t>();
    miss.deadline = Clock::time_point(Clock::duration(in.number<std::int64_t>()));
    for (auto requests = in.number<std::uint32_t>(); requests > 0 && in.isWhole(); requests--) {
      ParkedRequest parked;
      parked.mount = miss.question.mount;
      parked.channel = in.number<std::uint32_t>();
      parked.attempts = in.number<std::uint32_t>();
      parked.isInterrupted = in.number<std::uint8_t>() != 0;
      const auto message = in.raw(in.number<std::uint32_t>());
      parked.message.assign(message.begin(), message.end());
      miss.requests.push_back(std::move(parked));
    }
    requestOf_[keyOf(miss.question.mount, miss.question.ino)] = miss.question.request;
    misses_[miss.question.request] = std::move(miss);
  }
  return in.isDone();
}

}  // namespace bobbin
