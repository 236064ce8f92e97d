// A mount whose kernel is the test: the connection is a file, requests are handed in, and answers are
// read back. The index, the manifest and one object lie in a folder of their own.
#pragma once

#include <mutex>

#include "session/mount.hpp"
#include "support.hpp"

namespace bobbin::test {

// Made from craftIndex(), and removed at the end.
struct PackageFolder {
  PackageFolder();
  ~PackageFolder();
  PackageFolder(const PackageFolder&) = delete;
  PackageFolder& operator=(const PackageFolder&) = delete;

  static void write(const std::string& file, std::span<const std::uint8_t> bytes);
  // Those of the object: what it looks like, and where it is.
  link::Stamp stamp() const;

  std::string path;
  std::string indexPath;
  std::string manifestPath;
  std::string objectPath;
  Bytes index;
  // Of "b.bin", whose bytes are there, and of "a/two.txt", whose are not.
  link::ObjectName object;
  link::ObjectName missing;
};

// Inodes of craftIndex().
enum Ino : std::uint64_t { ROOT_INO = 1, A_INO = 2, OBJECT_INO = 3, NVME_INO = 4, MISSING_INO = 5 };

Bytes requestOf(fuse::Opcode opcode, std::uint64_t nodeid, std::string_view body = "",
                std::uint64_t unique = 1);

template <typename T>
std::string bytesOf(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

class FakeMount {
 public:
  FakeMount(const PackageFolder& folder, link::OpenMode openMode, unsigned channels = 1);

  // The answer with its header; empty: there is none (yet). One thread at a time for a channel.
  Bytes send(const Bytes& message, unsigned channel = 0, std::uint32_t attempts = 0);
  // What is answered to what was parked, when the daemon has brought the object. Nothing is asked: empty.
  std::vector<Bytes> answerLast();
  // The same for an index.
  std::vector<Bytes> answerIndex();
  void evict();
  // Closes what is open, and gives up what waits.
  void reset();

  Mount& mount() { return *mount_; }
  Shared& shared() { return shared_; }
  // What was sent to the daemon since the last call: the kinds of the frames.
  std::vector<std::uint16_t> takeFrames();

 private:
  std::vector<Bytes> handleAgain(const std::vector<ParkedRequest>& requests);
  void close(std::uint64_t nodeid, const link::ObjectName& name);

  const PackageFolder& folder_;
  Shared shared_{std::chrono::seconds(60)};
  std::mutex framesMutex_;
  std::vector<std::uint16_t> frames_;
  // Each file is open twice: as the mount's channel, which a worker cannot read from, and to read answers.
  struct Channel {
    int written = -1;
    Fd answers;
  };
  std::vector<Channel> channels_;
  std::unique_ptr<Mount> mount_;
};

}  // namespace bobbin::test
