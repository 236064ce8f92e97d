// What the cache could take: the free space that a mount reports, so that `df` says what there is for what is not here yet.
//
// The daemon writes its quota and what it holds into `limits.json` (daemon/store/object-store.ts); the disk is asked. So
// no daemon is needed for an answer, and a mount's first request is as good as any.
#pragma once

#include <cstdint>
#include <string_view>

#include "session/cache_folder.hpp"

namespace bobbin {

// What `limits.json` says, and what the disk has free for us. Zero: the text is not one of ours.
std::uint64_t roomBytes(std::string_view limits, std::uint64_t diskFreeBytes);

// Zero where it cannot be known. Any thread may call it.
std::uint64_t roomBytesOf(const CacheFolder& cache);

}  // namespace bobbin
