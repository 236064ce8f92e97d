// Unmounting what nobody holds any more: a mount of ours whose bobbin-fuse is gone, or one that another
// program of ours serves (--unmount). Its path may lead elsewhere by now, so the way to it is walked without
// links, and what lies at its end is compared before.
#pragma once

#include <string>

namespace bobbin {

// How --unmount ends; daemon/mount/unmount.ts reads these. 2 is what main ends with for bad arguments.
enum class LeftoverOutcome : int {
  done = 0,
  failed = 1,
  // There is no such mount any more.
  gone = 3,
  busy = 4,
  // At that path, or on or inside the mount, is something else, which stays.
  other = 5
};

struct LeftoverUnmounted {
  LeftoverOutcome outcome = LeftoverOutcome::done;
  std::string message;
};

LeftoverUnmounted unmountLeftover(const std::string& path, int mountId, bool isLazy);

}  // namespace bobbin
