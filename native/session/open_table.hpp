// Which objects of one mount are open, how often, and which have a backing id with the kernel.
//
// It lies in memory that outlives the process (a memfd): the kernel holds handles and backing ids for
// as long as the connection lives, and a bobbin-fuse that comes after this one, by execve or after a
// crash, must go on answering with the same ids. Two ids for one open inode are EIO.
//
// Slots are found by the object's whole name. A backing id is kept after the last close, because
// registering one costs as much as an open; a hand goes round (CLOCK) and closes those that are not
// open and were not used since it came by. An id pins the file's space on disk and about 2 KB of the
// kernel's memory.
//
// Owned by a mount; any thread may call it, it has its own lock. Descriptors in it belong to it.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "link/frames.hpp"
#include "link/system.hpp"

namespace bobbin {

class OpenTable {
 public:
  // A new one, or the one that lies in `memory`. Null: no memory, `error` says.
  static std::unique_ptr<OpenTable> create(int& error);
  static std::unique_ptr<OpenTable> adopt(Fd memory, int& error);
  ~OpenTable();
  OpenTable(const OpenTable&) = delete;
  OpenTable& operator=(const OpenTable&) = delete;

  struct Opened {
    // 0: none.
    std::int32_t backingId = 0;
    // Of the file that the backing id is for.
    std::uint64_t stampDigest = 0;
    // With this one.
    std::uint32_t opens = 0;
    // Somebody has it open without one: until that is closed, a backing id would be EIO.
    bool isCached = false;
  };

  // Counts an open. Nothing: there is no slot left.
  std::optional<Opened> acquire(const link::ObjectName& name, std::uint64_t size);
  // Takes back an open or counts a close. True: it was the last one.
  bool release(const link::ObjectName& name);
  bool isOpen(const link::ObjectName& name) const;

  // After acquire, by whoever opens it; one thread at a time for one object.
  void setBacking(const link::ObjectName& name, std::int32_t backingId, std::uint64_t stampDigest);
  void setCached(const link::ObjectName& name);

  // One that nobody has open, if there are `max` or more: for the caller to close.
  std::optional<std::int32_t> takeIdleBacking(std::size_t max);

  // What is held of an object that is to be evicted. Nothing: it is open. 0: nothing is held.
  std::optional<std::int32_t> takeForEviction(const link::ObjectName& name);

  // The descriptor of an open object, which reads in cached mode keep until its last close.
  int descriptor(const link::ObjectName& name) const;
  // Gives one to keep. Returned: not kept, since there is one or the object is not open.
  Fd keepDescriptor(const link::ObjectName& name, Fd file, std::size_t max);
  // True the first time after an object was opened.
  bool isFirstRead(const link::ObjectName& name);
  void forgetRead(const link::ObjectName& name);

  struct Totals {
    std::uint64_t objects = 0;
    std::uint64_t bytes = 0;
    std::uint64_t backingIds = 0;
  };
  // Of what is open, and all backing ids.
  Totals totals() const;
  int memory() const { return memory_.get(); }

 private:
  struct Slot {
    // 1 + type; 0: free.
    std::uint8_t tag;
    std::uint8_t name[32];
    // It was used since the hand came by.
    std::uint8_t isUsed;
    // It was opened without a backing id.
    std::uint8_t isCached;
    std::uint8_t wasRead;
    std::uint32_t opens;
    std::int32_t backingId;
    // Of this process alone: a successor finds it closed. 0: none.
    std::int32_t descriptor;
    std::uint64_t stampDigest;
    std::uint64_t size;
  };
  static_assert(sizeof(Slot) == 64);
  // 4 MiB of address space, of which only what is used takes memory.
  static constexpr std::size_t SLOTS = 1U << 16;
  static constexpr std::size_t SLOTS_MAX = SLOTS / 4 * 3;

  OpenTable() = default;
  bool map(int& error);
  template <typename Use>
  void forEachUsed(Use use);
  Slot* find(const link::ObjectName& name) const;
  void remove(Slot* slot);

  Fd memory_;
  Slot* slots_ = nullptr;
  mutable std::mutex mutex_;
  std::size_t used_ = 0;
  Totals totals_;
  std::size_t descriptors_ = 0;
  std::size_t hand_ = 0;
};

}  // namespace bobbin
