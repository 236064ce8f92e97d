// What bobbin-fuse may do. It starts with whatever it was given and keeps CAP_SYS_ADMIN, which mounting
// and passthrough need; where it is root it also keeps CAP_DAC_READ_SEARCH, raised for the moment of a
// mount or unmount, because a mountpoint may lie in somebody's home.
#pragma once

#include <string>

namespace bobbin {

// Numbers of linux/capability.h.
enum class Capability : int { dacReadSearch = 2, setpcap = 8, sysAdmin = 21 };

// Is in our effective set.
bool hasCapability(Capability capability);

// Becomes a user, if one is named, and drops every other capability, for all threads to come: call it
// before there are any. The daemon that is started later has none, unless we are root and stay it. On
// failure returns what is wrong.
std::string dropPrivileges(const std::string& user);

// Whether CAP_SYS_ADMIN outlives an execve, for users other than root: for a bobbin-fuse that replaces
// itself, and for nobody else.
void keepOverExec(bool isKept);

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
