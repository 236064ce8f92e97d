#include "session/known_objects.hpp"

#include <cstring>

namespace bobbin {

namespace {
constexpr std::uint64_t USED = 1;
constexpr std::size_t FIRST_SLOTS = 64;

// The finaliser of SplitMix64: every bit of the input moves every bit of the output.
std::uint64_t mix(std::uint64_t value) {
  value ^= value >> 30U;
  value *= 0xbf58476d1ce4e5b9ULL;
  value ^= value >> 27U;
  value *= 0x94d049bb133111ebULL;
  return value ^ (value >> 31U);
}
}  // namespace

std::uint64_t digestOf(const link::Stamp& stamp) {
  std::uint64_t digest = mix(stamp.inode + 0x9e3779b97f4a7c15ULL);
  digest = mix(digest ^ stamp.size);
  digest = mix(digest ^ static_cast<std::uint64_t>(stamp.mtimeNs));
  return mix(digest ^ static_cast<std::uint64_t>(stamp.ctimeNs)) & ~USED;
}

KnownObjects::Slot KnownObjects::keyOf(const link::ObjectName& name) {
  Slot key;
  std::memcpy(&key.high, name.bytes.data(), sizeof key.high);
  std::memcpy(&key.low, name.bytes.data() + sizeof key.high, sizeof key.low);
  key.high ^= name.type;
  // The one name that would look like a free slot.
  if (key.isFree()) key.low = 1;
  return key;
}

KnownObjects::Slot* KnownObjects::Shard::find(std::uint64_t high, std::uint64_t low) {
  if (slots.empty()) return nullptr;
  const std::size_t mask = slots.size() - 1;
  for (std::size_t at = low & mask; !slots[at].isFree(); at = (at + 1) & mask) {
    if (slots[at].high == high && slots[at].low == low) return &slots[at];
  }
  return nullptr;
}

void KnownObjects::Shard::insert(const Slot& slot) {
  if (Slot* present = find(slot.high, slot.low)) {
    present->stamp = slot.stamp;
    return;
  }
  if (4 * (count + 1) > 3 * slots.size()) grow();
  const std::size_t mask = slots.size() - 1;
  std::size_t at = slot.low & mask;
  while (!slots[at].isFree()) at = (at + 1) & mask;
  slots[at] = slot;
  count++;
}

void KnownObjects::Shard::grow() {
  std::vector<Slot> old(slots.empty() ? FIRST_SLOTS : 2 * slots.size());
  old.swap(slots);
  count = 0;
  for (const Slot& slot : old) {
    if (!slot.isFree()) insert(slot);
  }
}

// Moves up what stands behind, so that no search ends too early.
void KnownObjects::Shard::remove(Slot* slot) {
  const std::size_t mask = slots.size() - 1;
  auto hole = static_cast<std::size_t>(slot - slots.data());
  for (std::size_t at = (hole + 1) & mask; !slots[at].isFree(); at = (at + 1) & mask) {
    const std::size_t home = slots[at].low & mask;
    if (((at - home) & mask) < ((at - hole) & mask)) continue;
    slots[hole] = slots[at];
    hole = at;
  }
  slots[hole] = {};
  count--;
}

void KnownObjects::insert(const link::ObjectName& name, std::uint64_t stampDigest) {
  Slot slot = keyOf(name);
  slot.stamp = stampDigest;
  Shard& shard = shardOf(slot);
  const std::lock_guard lock(shard.mutex);
  shard.insert(slot);
}

void KnownObjects::erase(const link::ObjectName& name) { take(name); }

bool KnownObjects::matches(const link::ObjectName& name, const link::Stamp& stamp) {
  const Slot key = keyOf(name);
  Shard& shard = shardOf(key);
  const std::lock_guard lock(shard.mutex);
  Slot* slot = shard.find(key.high, key.low);
  if (slot == nullptr || (slot->stamp & ~USED) != digestOf(stamp)) return false;
  slot->stamp |= USED;
  return true;
}

bool KnownObjects::contains(const link::ObjectName& name) const {
  const Slot key = keyOf(name);
  const Shard& shard = shardOf(key);
  const std::lock_guard lock(shard.mutex);
  return const_cast<Shard&>(shard).find(key.high, key.low) != nullptr;
}

std::optional<KnownObjects::Taken> KnownObjects::take(const link::ObjectName& name) {
  const Slot key = keyOf(name);
  Shard& shard = shardOf(key);
  const std::lock_guard lock(shard.mutex);
  Slot* slot = shard.find(key.high, key.low);
  if (slot == nullptr) return std::nullopt;
  const Taken taken{.stampDigest = slot->stamp & ~USED, .wasUsed = (slot->stamp & USED) != 0};
  shard.remove(slot);
  return taken;
}

std::size_t KnownObjects::size() const {
  std::size_t count = 0;
  for (const Shard& shard : shards_) {
    const std::lock_guard lock(shard.mutex);
    count += shard.count;
  }
  return count;
}

std::vector<std::uint8_t> KnownObjects::save() const {
  std::vector<std::uint8_t> saved;
  for (const Shard& shard : shards_) {
    const std::lock_guard lock(shard.mutex);
    for (const Slot& slot : shard.slots) {
      if (slot.isFree()) continue;
      const auto* bytes = reinterpret_cast<const std::uint8_t*>(&slot);
      saved.insert(saved.end(), bytes, bytes + sizeof slot);
    }
  }
  return saved;
}

bool KnownObjects::restore(std::span<const std::uint8_t> saved) {
  if (saved.size() % sizeof(Slot) != 0) return false;
  for (std::size_t at = 0; at < saved.size(); at += sizeof(Slot)) {
    Slot slot;
    std::memcpy(&slot, saved.data() + at, sizeof slot);
    if (slot.isFree()) return false;
    Shard& shard = shardOf(slot);
    const std::lock_guard lock(shard.mutex);
    shard.insert(slot);
  }
  return true;
}

}  // namespace bobbin
