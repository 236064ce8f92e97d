// systemd, or whoever plays it: readiness over NOTIFY_SOCKET, and the store of descriptors that outlives
// us (sd_notify(3), FDSTORE=1).
#pragma once

#include <map>
#include <string>
#include <vector>

#include "link/system.hpp"

namespace bobbin::link {

class ServiceManager {
 public:
  // Reads NOTIFY_SOCKET, and takes it out of our environment's way only when a child is started.
  ServiceManager();

  bool isThere() const { return !address_.empty(); }
  void notify(const std::string& state) const;
  // Keeps a descriptor until it is removed by its name, over our death.
  void store(const std::string& name, int fd) const;
  void remove(const std::string& name) const;

  // What an earlier bobbin-fuse has stored, by name.
  static std::map<std::string, Fd> stored();

 private:
  void sendMessage(const std::string& state, int fd) const;
  std::string address_;
};

}  // namespace bobbin::link
