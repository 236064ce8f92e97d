// Which objects of the store were verified, and what their files looked like then. The daemon says so;
// this table outlives it, so that hits need no daemon.
//
// 24 bytes an object: half of its name, and a digest of its stamp. A name that shares its first half
// with another one's is harmless, because the file's stamp is compared before it is used.
//
// Owned by the server; any thread may call it. Each shard has its own lock.
#pragma once

#include <array>
#include <cstddef>
#include <mutex>
#include <optional>
#include <vector>

#include "link/frames.hpp"

namespace bobbin {

// Of which at most the lowest bit is lost.
std::uint64_t digestOf(const link::Stamp& stamp);

class KnownObjects {
 public:
  void insert(const link::ObjectName& name, std::uint64_t stampDigest);
  void erase(const link::ObjectName& name);

  // Compares a file's stamp with the one that was verified, and remembers the use.
  bool matches(const link::ObjectName& name, const link::Stamp& stamp);
  bool contains(const link::ObjectName& name) const;

  struct Taken {
    std::uint64_t stampDigest = 0;
    bool wasUsed = false;
  };
  // Removes an object and says whether it was used since the last time that it was taken or put back.
  std::optional<Taken> take(const link::ObjectName& name);

  std::size_t size() const;

  // For the next bobbin-fuse.
  std::vector<std::uint8_t> save() const;
  bool restore(std::span<const std::uint8_t> saved);

 private:
  struct Slot {
    // Both zero: free.
    std::uint64_t high = 0;
    std::uint64_t low = 0;
    // The lowest bit: used.
    std::uint64_t stamp = 0;
    bool isFree() const { return high == 0 && low == 0; }
  };
  // Open addressing with linear probing. Its slots are never more than three quarters full.
  struct Shard {
    mutable std::mutex mutex;
    std::vector<Slot> slots;
    std::size_t count = 0;

    Slot* find(std::uint64_t high, std::uint64_t low);
    void insert(const Slot& slot);
    void remove(Slot* slot);
    void grow();
  };
  static constexpr std::size_t SHARDS = 16;

  static Slot keyOf(const link::ObjectName& name);
  Shard& shardOf(const Slot& key) { return shards_[key.high % SHARDS]; }
  const Shard& shardOf(const Slot& key) const { return shards_[key.high % SHARDS]; }

  std::array<Shard, SHARDS> shards_;
};

}  // namespace bobbin
