// A package index and its manifest, open: the index is mapped, metadata is read from the manifest.
//
// A file that is cut while it is mapped would end the process with SIGBUS. The handler puts a page of
// zeros in place of the one that is gone, which the view then finds damaged, and goes on.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "index/index_view.hpp"
#include "link/system.hpp"
#include "session/cache_folder.hpp"

namespace bobbin {

// Owned by a mount and kept until its end; any thread may read it.
class IndexFile {
 public:
  // Both lie below the cache. Nothing: `reason` says why.
  static std::unique_ptr<IndexFile> open(const CacheFolder& cache, const std::string& indexPath,
                                         const std::string& manifestPath, std::string& reason);
  ~IndexFile();
  IndexFile(const IndexFile&) = delete;
  IndexFile& operator=(const IndexFile&) = delete;

  const IndexView& view() const { return *view_; }
  const std::string& indexPath() const { return indexPath_; }
  const std::string& manifestPath() const { return manifestPath_; }

  // A part of the manifest, compared with its CRC-32. Nothing: damaged.
  std::optional<std::string> manifestText(const Span& span) const;
  // A page of the index was gone when it was read.
  bool isCut() const;

 private:
  IndexFile() = default;

  std::string indexPath_;
  std::string manifestPath_;
  Fd manifest_;
  void* mapped_ = nullptr;
  std::size_t mappedBytes_ = 0;
  // Of the table that the signal handler reads.
  int region_ = -1;
  std::unique_ptr<IndexView> view_;
};

// Once, before any index is opened.
void installMappingGuard();

}  // namespace bobbin
