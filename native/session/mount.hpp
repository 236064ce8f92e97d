// One mount: a connection to the kernel, the threads that serve it, and what it has open.
//
// A worker reads a request, answers it from the index or from an object's file, and reads the next. What
// only the daemon can do is parked (parked_misses.hpp) and handled again, from the beginning, when the
// daemon has answered. So there is one path for hits and misses, and a worker never waits for a network.
//
// Owned by the server, which calls the methods that say so from its one thread; `handle` is called by
// workers and by the server.
#pragma once

#include <atomic>
#include <memory>
#include <shared_mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "link/frames.hpp"
#include "protocol/negotiate.hpp"
#include "session/access_queue.hpp"
#include "session/attachment.hpp"
#include "session/mount_record.hpp"
#include "session/mount_table.hpp"
#include "session/names.hpp"
#include "session/object_files.hpp"
#include "session/open_table.hpp"
#include "session/parked_misses.hpp"
#include "session/reply_buffers.hpp"

namespace bobbin {

// What mounts share. Every member may be used by any thread, and lives longer than the mounts.
struct Shared {
  CacheFolder cache;
  KnownObjects known;
  ObjectFiles files{cache, known};
  ReplyBuffers buffers;
  ParkedMisses parked;
  // Queues a frame for the daemon; without one it is dropped, since all is asked again of the next.
  std::function<void(link::Buffer)> send;
  // The connection is over: nobody will be read from again.
  std::function<void(std::uint32_t mount)> onEnded;
  unsigned threads = 2;
  // Folders that mountpoints must lie in; empty: anywhere.
  std::vector<MountRoot> roots;
  // Descriptors that may be kept for readers, over all mounts.
  std::size_t descriptorsMax = 256;
  // Opens (without opens: first reads) that needed no daemon.
  std::atomic<std::uint64_t> hits{0};
  // Kernels that lack something, played: for tests.
  bool withoutPassthrough = false;
  bool withoutResend = false;
  // To measure what the access log costs.
  bool withoutAccesses = false;

  explicit Shared(Clock::duration patience) : parked(patience) {}
};

class Mount {
 public:
  // Mounts, and answers INIT. Null: `failed` says why, and nothing is mounted.
  static std::unique_ptr<Mount> create(std::uint32_t id, link::Mount request, const MountOwner& owner, Shared& shared,
                                       MountFailed& failed);
  // Goes on with a connection that another bobbin-fuse has left. Null: its index cannot be read, `reason`
  // says.
  static std::unique_ptr<Mount> adopt(MountRecord record, std::vector<Fd> channels, Fd openTable, Fd folder,
                                      Shared& shared, std::string& reason);
  // Ends the connection, if there still is one: open files fail from then on.
  ~Mount();
  Mount(const Mount&) = delete;
  Mount& operator=(const Mount&) = delete;

  MountRecord& record() { return record_; }
  const MountRecord& record() const { return record_; }
  std::uint32_t id() const { return record_.id; }

  // The server's thread: starts the workers, and ends them between two requests.
  void start();
  void pause();
  // Asks the kernel to send again what was read and not answered. Only where that was agreed.
  void resend();
  bool hasEnded() const { return hasEnded_.load(); }

  // Whether it is still mounted, by a table that was just read.
  bool isMounted(const std::vector<MountedAt>& table) const;
  Detached unmount(bool isLazy) const { return detach(attachment_, isLazy); }
  // It has left its mountpoint; files that are open go on.
  void hasLeft();

  // The server's thread, while the workers are paused: the daemon has made the index again. False: it
  // cannot be read, and the old one stays; `reason` says.
  bool replaceIndex(const std::string& indexPath, const std::string& manifestPath, std::string& reason);
  // What an entry known by a CRC64NVME is named in the store.
  void nameObject(std::uint32_t ino, const link::ObjectName& name);
  // Lets go of an object. False: it is open.
  bool letGo(const link::ObjectName& name);
  bool isOpen(const link::ObjectName& name) const { return openTable_->isOpen(name); }

  // One request of the kernel, as it was read.
  void handle(std::span<const std::uint8_t> message, std::uint32_t channel, std::uint32_t attempts);
  void answerError(const ParkedRequest& request, int error);

  OpenTable::Totals totals() const { return openTable_->totals(); }

  // Accesses that the daemon was not sent yet, as a frame; empty: none.
  link::Buffer takeAccesses();
  AccessQueue& accesses() { return accesses_; }

  const std::vector<Fd>& channels() const { return channels_; }
  // -1: it has left its mountpoint.
  int folder() const { return attachment_.folder.get(); }
  int openTableMemory() const { return openTable_->memory(); }
  link::Buffer saveNames() const;
  bool restoreNames(std::span<const std::uint8_t> saved);

 private:
  Mount(MountRecord record, Shared& shared);

  bool begin(MountFailed& failed);
  bool answerInit(MountFailed& failed);
  bool chooseMode(MountFailed& failed);
  // 0 or an errno.
  int tryPassthrough();
  void addClones();
  void readAhead() const;
  void work(std::uint32_t channel);

  void writeError(std::uint32_t channel, std::uint64_t unique, int error) const;
  Error dispatch(const fuse::Request& request, std::uint32_t channel, std::uint32_t attempts, Reply& reply);
  Error open(const fuse::Request& request, const Names& names, const ParkedRequest& toPark, Reply& reply);
  Error openPassthrough(const Node& node, const link::ObjectName& name, const OpenTable::Opened& opened,
                        Reply& reply);
  Error openCached(const Node& node, const link::ObjectName& name, Reply& reply);
  Error read(const fuse::Request& request, const Names& names, const ParkedRequest& toPark, Reply& reply);
  Error readObject(const Node& node, const link::ObjectName& name, std::uint64_t offset, std::size_t bytes,
                   Reply& reply);
  Error release(const fuse::Request& request, const Names& names);
  Error interrupt(const fuse::Request& request);
  Error park(std::uint32_t ino, ParkedRequest request);
  Error parkForIndex(ParkedRequest request);
  void ask(const ParkedMisses::Question& question);
  void closeBacking(std::int32_t backingId);

  std::optional<link::ObjectName> nameOf(const Node& node) const;
  ObjectState stateOf(const Node& node) const;
  void logAccess(link::AccessKind kind, std::uint32_t position, std::uint64_t bytes);

  MountRecord record_;
  Shared& shared_;
  MountOptions options_;
  Attachment attachment_;
  // [0] made the connection; the others are its clones. A request is answered on the one it was read from.
  std::vector<Fd> channels_;
  std::unique_ptr<OpenTable> openTable_;
  std::unique_ptr<IndexFile> index_;

  std::vector<std::thread> workers_;
  std::atomic<unsigned> working_{0};
  std::atomic<bool> isPausing_{false};
  std::atomic<bool> hasEnded_{false};

  // Opening, first reading and closing of one object exclude each other; reads do not. By name.
  static constexpr std::size_t STRIPES = 64;
  std::array<std::shared_mutex, STRIPES> stripes_;
  std::shared_mutex& stripeOf(const link::ObjectName& name) { return stripes_[name.bytes[31] % STRIPES]; }

  mutable std::shared_mutex namesMutex_;
  std::unordered_map<std::uint32_t, link::ObjectName> names_;

  AccessQueue accesses_;
  // Without opens, the first read of each file in this mount: one bit a node.
  std::unique_ptr<std::atomic<std::uint64_t>[]> wasRead_;
  bool isFirstRead(std::uint32_t position);
  // It did not come to pass.
  void forgetRead(std::uint32_t position, const link::ObjectName& name);
  std::atomic<bool> hasLoggedFallback_{false};
};

// Once, before any thread: the signal that ends a worker's wait.
void installWakeSignal();

}  // namespace bobbin
