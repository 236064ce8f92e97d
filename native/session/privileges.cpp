#include "session/privileges.hpp"

#include <grp.h>
#include <linux/capability.h>
#include <pwd.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

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

std::string become(const std::string& user) {
#if defined(BOBBIN_STATIC) && defined(__GLIBC__)
  // Other sources of names are plugins, which want the C library that they were built with.
  for (const char* database : {"passwd", "group", "initgroups"}) ::__nss_configure_lookup(database, "files");
#endif
  char buffer[4096];
  passwd entry{};
  passwd* found = nullptr;
  if (::getpwnam_r(user.c_str(), &entry, buffer, sizeof buffer, &found) != 0 || found == nullptr)
    return "there is no user " + user + " (--user)";
  if (::getuid() == found->pw_uid) return "";
  ::prctl(PR_SET_KEEPCAPS, 1);
  if (::initgroups(user.c_str(), found->pw_gid) != 0 ||
      ::setresgid(found->pw_gid, found->pw_gid, found->pw_gid) != 0 ||
      ::setresuid(found->pw_uid, found->pw_uid, found->pw_uid) != 0)
    return "cannot become " + user + ": " + errorText(errno);
  ::prctl(PR_SET_KEEPCAPS, 0);
  // The home folder decides where caches and credentials are.
  ::setenv("HOME", found->pw_dir, 1);
  ::setenv("USER", user.c_str(), 1);
  // A change of user makes a process undumpable, and /proc/self/fd root's.
  ::prctl(PR_SET_DUMPABLE, 1);
  return "";
}

}  // namespace

bool hasCapability(Capability capability) {
  Sets sets;
  return readSets(sets) && (sets.effective & bitOf(capability)) != 0;
}

std::string dropPrivileges(const std::string& user) {
  if (!user.empty()) {
    if (const std::string problem = become(user); !problem.empty()) return problem;
  }
  Sets sets;
  if (!readSets(sets)) return "capget: " + errorText(errno);
  const std::uint64_t kept =
      bitOf(Capability::sysAdmin) | (::getuid() == 0 ? bitOf(Capability::dacReadSearch) : 0);
  sets.permitted &= kept;
  sets.effective = sets.permitted & bitOf(Capability::sysAdmin);
  sets.inheritable = 0;
  ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  if (!writeSets(sets)) return "capset: " + errorText(errno);
  return "";
}

void keepOverExec(bool isKept) {
  Sets sets;
  if (!readSets(sets)) return;
  const std::uint64_t bit = bitOf(Capability::sysAdmin);
  if ((sets.permitted & bit) == 0) return;
  sets.inheritable = isKept ? bit : 0;
  if (!isKept) ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  writeSets(sets);
  if (isKept) ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, static_cast<int>(Capability::sysAdmin), 0, 0);
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
