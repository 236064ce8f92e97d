// systemd, or whoever plays it: readiness over NOTIFY_SOCKET, and the store of descriptors that outlives
// us (sd_notify(3), FDSTORE=1).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "link/system.hpp"

namespace bobbin::link {

class ServiceManager {
 public:
  // Reads NOTIFY_SOCKET, and takes it out of our environment's way only when a child is started.
  ServiceManager();

  bool isThere() const { return !address_.empty(); }
  void notify(const std::string& state) const;
  // Has descriptors kept until they are removed by their names, over our death. False, and none is kept: it
  // would not keep them all (FileDescriptorStoreMax=; systemd drops what is too much without a word, and says
  // in FDSTORE how many it takes since version 254).
  bool store(const std::vector<std::pair<std::string, int>>& descriptors);
  void remove(const std::vector<std::string>& names);

  // How many are kept, for the next bobbin-fuse.
  std::uint32_t kept() const { return kept_; }
  void setKept(std::uint32_t kept) { kept_ = kept; }

  // What an earlier bobbin-fuse has stored, by name.
  std::map<std::string, Fd> stored();

 private:
  void sendMessage(const std::string& state, int fd) const;
  std::string address_;
  // Nothing: it does not say.
  std::optional<std::uint32_t> keptMax_;
  std::uint32_t kept_ = 0;
};

}  // namespace bobbin::link
