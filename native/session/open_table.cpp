#include "session/open_table.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace bobbin {

namespace {
std::size_t homeOf(const std::uint8_t* name, std::size_t slots) {
  std::uint64_t hash = 0;
  std::memcpy(&hash, name, sizeof hash);
  return hash & (slots - 1);
}
}  // namespace

std::unique_ptr<OpenTable> OpenTable::create(int& error) {
  std::unique_ptr<OpenTable> table(new OpenTable);
  table->memory_.reset(::memfd_create("bobbin-open", MFD_CLOEXEC));
  if (!table->memory_ || ::ftruncate(table->memory_.get(), SLOTS * sizeof(Slot)) != 0) {
    error = errno;
    return nullptr;
  }
  return table->map(error) ? std::move(table) : nullptr;
}

std::unique_ptr<OpenTable> OpenTable::adopt(Fd memory, int& error) {
  std::unique_ptr<OpenTable> table(new OpenTable);
  table->memory_ = std::move(memory);
  const auto bytes = ::lseek(table->memory_.get(), 0, SEEK_END);
  if (bytes != static_cast<off_t>(SLOTS * sizeof(Slot))) {
    error = EINVAL;
    return nullptr;
  }
  if (!table->map(error)) return nullptr;
  table->forEachUsed([&](Slot& slot) {
    slot.descriptor = 0;
    table->used_++;
    if (slot.backingId != 0) table->totals_.backingIds++;
    if (slot.opens == 0) return;
    table->totals_.objects++;
    table->totals_.bytes += slot.size;
  });
  return table;
}

// Only in the parts that were ever written to: looking at the others would give them memory.
template <typename Use>
void OpenTable::forEachUsed(Use use) {
  constexpr auto end = static_cast<off_t>(SLOTS * sizeof(Slot));
  off_t hole = 0;
  for (off_t data = 0; hole < end && (data = ::lseek(memory_.get(), hole, SEEK_DATA)) >= 0;) {
    hole = ::lseek(memory_.get(), data, SEEK_HOLE);
    if (hole < 0) hole = end;
    const auto first = static_cast<std::size_t>(data) / sizeof(Slot);
    const auto last = static_cast<std::size_t>(std::min(hole, end)) / sizeof(Slot);
    for (std::size_t i = first; i < last; i++) {
      if (slots_[i].tag != 0) use(slots_[i]);
    }
  }
}

bool OpenTable::map(int& error) {
  void* mapped = ::mmap(nullptr, SLOTS * sizeof(Slot), PROT_READ | PROT_WRITE, MAP_SHARED, memory_.get(), 0);
  if (mapped == MAP_FAILED) {
    error = errno;
    return false;
  }
  slots_ = static_cast<Slot*>(mapped);
  return true;
}

OpenTable::~OpenTable() {
  if (slots_ == nullptr) return;
  if (descriptors_ > 0) {
    forEachUsed([](Slot& slot) {
      if (slot.descriptor != 0) ::close(slot.descriptor);
    });
  }
  ::munmap(slots_, SLOTS * sizeof(Slot));
}

OpenTable::Slot* OpenTable::find(const link::ObjectName& name) const {
  for (std::size_t at = homeOf(name.bytes.data(), SLOTS); slots_[at].tag != 0; at = (at + 1) & (SLOTS - 1)) {
    Slot& slot = slots_[at];
    if (slot.tag == name.type + 1 && std::memcmp(slot.name, name.bytes.data(), sizeof slot.name) == 0)
      return &slot;
  }
  return nullptr;
}

void OpenTable::remove(Slot* slot) {
  auto hole = static_cast<std::size_t>(slot - slots_);
  for (std::size_t at = (hole + 1) & (SLOTS - 1); slots_[at].tag != 0; at = (at + 1) & (SLOTS - 1)) {
    const std::size_t home = homeOf(slots_[at].name, SLOTS);
    if (((at - home) & (SLOTS - 1)) < ((at - hole) & (SLOTS - 1))) continue;
    slots_[hole] = slots_[at];
    hole = at;
  }
  slots_[hole] = {};
  used_--;
}

std::optional<OpenTable::Opened> OpenTable::acquire(const link::ObjectName& name, std::uint64_t size) {
  const std::lock_guard lock(mutex_);
  Slot* slot = find(name);
  if (slot == nullptr) {
    if (used_ >= SLOTS_MAX) return std::nullopt;
    std::size_t at = homeOf(name.bytes.data(), SLOTS);
    while (slots_[at].tag != 0) at = (at + 1) & (SLOTS - 1);
    slot = &slots_[at];
    *slot = {};
    std::memcpy(slot->name, name.bytes.data(), sizeof slot->name);
    slot->size = size;
    slot->tag = static_cast<std::uint8_t>(name.type + 1);
    used_++;
  }
  if (slot->opens++ == 0) {
    totals_.objects++;
    totals_.bytes += slot->size;
  }
  slot->isUsed = 1;
  return Opened{.backingId = slot->backingId,
                .stampDigest = slot->stampDigest,
                .opens = slot->opens,
                .isCached = slot->isCached != 0};
}

bool OpenTable::release(const link::ObjectName& name) {
  const std::lock_guard lock(mutex_);
  Slot* slot = find(name);
  if (slot == nullptr || slot->opens == 0 || --slot->opens > 0) return false;
  totals_.objects--;
  totals_.bytes -= slot->size;
  slot->isCached = 0;
  slot->wasRead = 0;
  if (slot->descriptor != 0) {
    ::close(slot->descriptor);
    slot->descriptor = 0;
    descriptors_--;
  }
  if (slot->backingId == 0) remove(slot);
  return true;
}

bool OpenTable::isOpen(const link::ObjectName& name) const {
  const std::lock_guard lock(mutex_);
  const Slot* slot = find(name);
  return slot != nullptr && slot->opens > 0;
}

void OpenTable::setBacking(const link::ObjectName& name, std::int32_t backingId, std::uint64_t stampDigest) {
  const std::lock_guard lock(mutex_);
  Slot* slot = find(name);
  if (slot == nullptr) return;
  if (slot->backingId == 0 && backingId != 0) totals_.backingIds++;
  if (slot->backingId != 0 && backingId == 0) totals_.backingIds--;
  slot->backingId = backingId;
  slot->stampDigest = stampDigest;
}

void OpenTable::setCached(const link::ObjectName& name) {
  const std::lock_guard lock(mutex_);
  if (Slot* slot = find(name)) slot->isCached = 1;
}

std::optional<std::int32_t> OpenTable::takeIdleBacking(std::size_t max) {
  const std::lock_guard lock(mutex_);
  if (totals_.backingIds < max) return std::nullopt;
  // Twice round: the first time takes the marks away.
  for (std::size_t steps = 0; steps < 2 * SLOTS; steps++) {
    Slot& slot = slots_[hand_];
    hand_ = (hand_ + 1) & (SLOTS - 1);
    if (slot.tag == 0 || slot.opens > 0 || slot.backingId == 0) continue;
    if (slot.isUsed != 0) {
      slot.isUsed = 0;
      continue;
    }
    const std::int32_t backingId = slot.backingId;
    totals_.backingIds--;
    remove(&slot);
    return backingId;
  }
  return std::nullopt;
}

std::optional<std::int32_t> OpenTable::takeForEviction(const link::ObjectName& name) {
  const std::lock_guard lock(mutex_);
  Slot* slot = find(name);
  if (slot == nullptr) return 0;
  if (slot->opens > 0) return std::nullopt;
  const std::int32_t backingId = slot->backingId;
  if (backingId != 0) totals_.backingIds--;
  remove(slot);
  return backingId;
}

int OpenTable::descriptor(const link::ObjectName& name) const {
  const std::lock_guard lock(mutex_);
  const Slot* slot = find(name);
  return slot == nullptr || slot->descriptor == 0 ? -1 : slot->descriptor;
}

Fd OpenTable::keepDescriptor(const link::ObjectName& name, Fd file, std::size_t max) {
  const std::lock_guard lock(mutex_);
  Slot* slot = find(name);
  if (slot == nullptr || slot->opens == 0 || slot->descriptor != 0 || descriptors_ >= max) return file;
  slot->descriptor = file.release();
  descriptors_++;
  return {};
}

bool OpenTable::isFirstRead(const link::ObjectName& name) {
  const std::lock_guard lock(mutex_);
  Slot* slot = find(name);
  if (slot == nullptr || slot->wasRead != 0) return false;
  slot->wasRead = 1;
  return true;
}

void OpenTable::forgetRead(const link::ObjectName& name) {
  const std::lock_guard lock(mutex_);
  if (Slot* slot = find(name)) slot->wasRead = 0;
}

OpenTable::Totals OpenTable::totals() const {
  const std::lock_guard lock(mutex_);
  return totals_;
}

}  // namespace bobbin
