// What bobbin-fuse may do. It starts with whatever it was given and keeps CAP_SYS_ADMIN, which mounting
// and passthrough need; where it is root it also keeps CAP_DAC_READ_SEARCH, raised for the moment of a
// mount or unmount, because a mountpoint may lie in somebody's home.
//
// The daemon may have a user of its own, so that it can neither signal nor trace us. Then CAP_SETUID,
// CAP_SETGID and CAP_KILL are kept as well, permitted but not in effect: they are raised for the moment in
// which the daemon's files are made as its own, in the child that becomes the daemon, and to signal it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace bobbin {

// Numbers of linux/capability.h.
enum class Capability : int { dacReadSearch = 2, kill = 5, setgid = 6, setuid = 7, setpcap = 8, sysAdmin = 21 };

// A user of this machine.
struct Account {
  std::string name;
  uid_t uid = 0;
  gid_t gid = 0;
  // All of them, gid among them.
  std::vector<gid_t> groups;
  std::string home;
};

std::optional<Account> findAccount(const std::string& name);

// Is in our effective set.
bool hasCapability(Capability capability);

// Becomes a user, if one is named, and drops every other capability, for all threads to come: call it
// before there are any. Without a user of its own the daemon that is started later has none of them,
// unless we are root and stay it. With one, we are in that user's group, to read the store. On failure
// returns what is wrong.
std::string dropPrivileges(const std::optional<Account>& user, const std::optional<Account>& daemon);

// In a child between fork and exec: becomes that user, without any capability. False: it is not. Allocates nothing.
bool becomeForExec(const Account& account);

// Whether our capabilities outlive an execve, for users other than root: for a bobbin-fuse that replaces
// itself, and for nobody else.
void keepOverExec(bool isKept);

// As long as this lives, files are opened, made and removed on this thread as a user would. Without an account, or
// where we are that user, it does nothing.
class ActingAs {
 public:
  explicit ActingAs(const std::optional<Account>& account);
  ~ActingAs();
  ActingAs(const ActingAs&) = delete;
  ActingAs& operator=(const ActingAs&) = delete;

 private:
  bool isActing_ = false;
  uid_t uid_ = 0;
  gid_t gid_ = 0;
};

// Effective as long as this lives, on this thread, if it is permitted.
class CapabilityRaised {
 public:
  explicit CapabilityRaised(Capability capability);
  ~CapabilityRaised();
  CapabilityRaised(const CapabilityRaised&) = delete;
  CapabilityRaised& operator=(const CapabilityRaised&) = delete;

 private:
  Capability capability_;
  bool isRaised_ = false;
};

}  // namespace bobbin
