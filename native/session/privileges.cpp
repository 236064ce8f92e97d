#include "session/privileges.hpp"

#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <sys/fsuid.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#include "link/system.hpp"

#if defined(BOBBIN_STATIC) && defined(__GLIBC__)
#  include <nss.h>
#endif

namespace bobbin {

namespace {

struct Sets {
  std::uint64_t effective = 0;
  std::uint64_t permitted = 0;
  std::uint64_t inheritable = 0;
};

constexpr std::uint64_t bitOf(Capability capability) { return 1ULL << static_cast<unsigned>(capability); }

bool readSets(Sets& sets) {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  __user_cap_data_struct data[2]{};
  if (::syscall(SYS_capget, &header, data) != 0) return false;
  sets.effective = data[0].effective | std::uint64_t{data[1].effective} << 32U;
  sets.permitted = data[0].permitted | std::uint64_t{data[1].permitted} << 32U;
  sets.inheritable = data[0].inheritable | std::uint64_t{data[1].inheritable} << 32U;
  return true;
}

bool writeSets(const Sets& sets) {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  __user_cap_data_struct data[2]{};
  for (unsigned i = 0; i < 2; i++) {
    data[i].effective = static_cast<std::uint32_t>(sets.effective >> (32 * i));
    data[i].permitted = static_cast<std::uint32_t>(sets.permitted >> (32 * i));
    data[i].inheritable = static_cast<std::uint32_t>(sets.inheritable >> (32 * i));
  }
  return ::syscall(SYS_capset, &header, data) == 0;
}

// Ours, and a change of user makes a process undumpable and /proc/self/fd root's.
void stayDumpable() { ::prctl(PR_SET_DUMPABLE, 1); }

std::string become(const Account& user, const std::optional<Account>& daemon) {
  if (::getuid() == user.uid) return "";
  // The daemon's files are its group's to read. No other group of either: none is needed.
  const std::vector<gid_t> groups = daemon ? std::vector<gid_t>{daemon->gid} : user.groups;
  const gid_t gid = daemon ? daemon->gid : user.gid;
  ::prctl(PR_SET_KEEPCAPS, 1);
  if (::setgroups(groups.size(), groups.data()) != 0 || ::setresgid(gid, gid, gid) != 0 ||
      ::setresuid(user.uid, user.uid, user.uid) != 0)
    return "cannot become " + user.name + ": " + errorText(errno);
  ::prctl(PR_SET_KEEPCAPS, 0);
  stayDumpable();
  return "";
}

// What stays permitted.
std::uint64_t keptWith(const std::optional<Account>& daemon) {
  std::uint64_t kept = bitOf(Capability::sysAdmin);
  if (::getuid() == 0) kept |= bitOf(Capability::dacReadSearch);
  if (daemon && daemon->uid != ::getuid())
    kept |= bitOf(Capability::setuid) | bitOf(Capability::setgid) | bitOf(Capability::kill);
  return kept;
}

}  // namespace

bool hasCapability(Capability capability) {
  Sets sets;
  return readSets(sets) && (sets.effective & bitOf(capability)) != 0;
}

std::optional<Account> findAccount(const std::string& name) {
#if defined(BOBBIN_STATIC) && defined(__GLIBC__)
  // Other sources of names are plugins, which want the C library that they were built with.
  for (const char* database : {"passwd", "group", "initgroups"}) ::__nss_configure_lookup(database, "files");
#endif
  char buffer[4096];
  passwd entry{};
  passwd* found = nullptr;
  if (::getpwnam_r(name.c_str(), &entry, buffer, sizeof buffer, &found) != 0 || found == nullptr)
    return std::nullopt;
  Account account{.name = name, .uid = found->pw_uid, .gid = found->pw_gid, .groups = {}, .home = found->pw_dir};
  int count = 64;
  account.groups.resize(static_cast<std::size_t>(count));
  if (::getgrouplist(name.c_str(), account.gid, account.groups.data(), &count) < 0) {
    account.groups.resize(static_cast<std::size_t>(count));
    ::getgrouplist(name.c_str(), account.gid, account.groups.data(), &count);
  }
  account.groups.resize(static_cast<std::size_t>(std::max(count, 0)));
  return account;
}

std::string dropPrivileges(const std::optional<Account>& user, const std::optional<Account>& daemon) {
  if (user) {
    if (const std::string problem = become(*user, daemon); !problem.empty()) return problem;
  }
  // The home folder decides where the daemon's caches and credentials are.
  if (const auto& lives = daemon ? daemon : user; lives) {
    ::setenv("HOME", lives->home.c_str(), 1);
    ::setenv("USER", lives->name.c_str(), 1);
  }
  Sets sets;
  if (!readSets(sets)) return "capget: " + errorText(errno);
  const std::uint64_t kept = keptWith(daemon);
  if (const std::uint64_t missing = kept & ~sets.permitted & ~bitOf(Capability::sysAdmin); daemon && missing != 0)
    return "--daemon-user " + daemon->name +
           " needs CAP_SETUID, CAP_SETGID and CAP_KILL: start bobbin-fuse as root, or by bobbin.service";
  sets.permitted &= kept;
  sets.effective = sets.permitted & bitOf(Capability::sysAdmin);
  sets.inheritable = 0;
  ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  if (!writeSets(sets)) return "capset: " + errorText(errno);
  return "";
}

bool becomeForExec(const Account& account) {
  Sets sets;
  if (!readSets(sets)) return false;
  sets.effective |= sets.permitted & (bitOf(Capability::setuid) | bitOf(Capability::setgid));
  if (!writeSets(sets)) return false;
  // Not the C library's, which would have other threads do the same, and wait for them.
  if (::syscall(SYS_setgroups, account.groups.size(), account.groups.data()) != 0 ||
      ::syscall(SYS_setresgid, account.gid, account.gid, account.gid) != 0 ||
      ::syscall(SYS_setresuid, account.uid, account.uid, account.uid) != 0)
    return false;
  ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  return writeSets(Sets{});
}

void keepOverExec(bool isKept) {
  Sets sets;
  if (!readSets(sets)) return;
  sets.inheritable = isKept ? sets.permitted : 0;
  if (!isKept) ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  writeSets(sets);
  if (!isKept) return;
  for (const auto capability :
       {Capability::sysAdmin, Capability::setuid, Capability::setgid, Capability::kill}) {
    if ((sets.permitted & bitOf(capability)) != 0)
      ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, static_cast<int>(capability), 0, 0);
  }
}

ActingAs::ActingAs(const std::optional<Account>& account) : uid_(::geteuid()), gid_(::getegid()) {
  if (!account || account->uid == uid_) return;
  const CapabilityRaised user(Capability::setuid);
  const CapabilityRaised group(Capability::setgid);
  ::setfsgid(account->gid);
  ::setfsuid(account->uid);
  isActing_ = true;
  stayDumpable();
}

ActingAs::~ActingAs() {
  if (!isActing_) return;
  const int error = errno;
  // Of root, the kernel takes and gives back capabilities over files with that.
  Sets sets;
  readSets(sets);
  ::setfsuid(uid_);
  ::setfsgid(gid_);
  writeSets(sets);
  stayDumpable();
  errno = error;
}

CapabilityRaised::CapabilityRaised(Capability capability) : capability_(capability) {
  Sets sets;
  if (!readSets(sets) || (sets.permitted & bitOf(capability)) == 0 ||
      (sets.effective & bitOf(capability)) != 0)
    return;
  sets.effective |= bitOf(capability);
  isRaised_ = writeSets(sets);
}

CapabilityRaised::~CapabilityRaised() {
  Sets sets;
  if (!isRaised_ || !readSets(sets)) return;
  // What failed in between is the caller's to read.
  const int error = errno;
  sets.effective &= ~bitOf(capability_);
  writeSets(sets);
  errno = error;
}

}  // namespace bobbin
