// What the index alone answers: names, attributes, directories, extended attributes. It makes replies
// in the caller's buffer, allocates nothing for lookups, attributes and directories, and makes no
// system call but for metadata, which is read from the manifest.
//
// A node's id is its inode number.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "protocol/request.hpp"
#include "session/reply.hpp"
#include "session/index_file.hpp"

namespace bobbin {

struct MountOptions {
  std::uint32_t uid = 0;
  std::uint32_t gid = 0;
  std::uint32_t umask = 0;
  // For an overlay that stands on the mount.
  bool showsWriteBits = false;
  bool allowOther = false;
  // Of mtime, ctime and atime alike, since 1970.
  std::int64_t timeNs = 0;
  std::string registry;
  std::string package;
  std::optional<std::string> message;
  // Otherwise they are only answered by name.
  bool listAttributes = false;
};

// Above zero, an errno; DAMAGED: the index cannot answer.
using Error = int;
inline constexpr Error DAMAGED = -1;

// Of the store, without the daemon.
struct ObjectState {
  bool isCached = false;
  bool isVerified = false;
};

// The position in the index that a node id stands for. Nothing: none.
std::optional<std::uint32_t> positionOf(std::uint64_t nodeid);

// Lives for one request; the index and the options belong to the mount.
class Names {
 public:
  Names(const IndexFile& index, const MountOptions& options) : index_(index), options_(options) {}

  Error node(std::uint64_t nodeid, Node& into) const;

  Error lookup(std::uint64_t parent, std::string_view name, Reply& reply) const;
  Error getattr(std::uint64_t nodeid, Reply& reply) const;
  Error statx(std::uint64_t nodeid, Reply& reply) const;
  Error readdir(std::uint64_t nodeid, std::uint64_t offset, std::uint32_t bytesMax, bool isPlus,
                Reply& reply) const;
  // `freeBytes`: what the cache could take.
  Error statfs(std::uint64_t freeBytes, Reply& reply) const;
  Error lseek(std::uint64_t nodeid, const fuse::LseekIn& in, Reply& reply) const;
  using StateOf = std::function<ObjectState(const Node&)>;
  Error getxattr(std::uint64_t nodeid, std::string_view name, std::uint32_t bytesMax, const StateOf& stateOf,
                 Reply& reply) const;
  Error listxattr(std::uint64_t nodeid, std::uint32_t bytesMax, Reply& reply) const;

 private:
  fuse::Attr attr(const Node& node) const;
  fuse::EntryOut entry(const Node& node) const;
  // Nothing in `value`: there is no such attribute.
  Error attribute(const Node& node, std::string_view name, const StateOf& stateOf,
                  std::optional<std::string>& value) const;
  Error metadata(const Node& node, std::optional<std::string>& value) const;

  const IndexFile& index_;
  const MountOptions& options_;
};

}  // namespace bobbin
