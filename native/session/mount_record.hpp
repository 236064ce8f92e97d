// What one bobbin-fuse leaves to the next of a mount.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "link/frames.hpp"
#include "protocol/negotiate.hpp"

namespace bobbin {

// Everything that the next bobbin-fuse needs of a mount, but its descriptors.
struct MountRecord {
  std::uint32_t id = 0;
  int mountId = 0;
  std::string device;
  link::Mount request;
  link::OpenMode openMode = link::OpenMode::cached;
  std::string reason;
  fuse::Agreement agreement;
  bool isClosed = false;

  link::Buffer save() const;
  static std::optional<MountRecord> restore(std::span<const std::uint8_t> saved);
};

}  // namespace bobbin
