#include "session/index_file.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <array>
#include <atomic>
#include <csignal>
#include <mutex>

namespace bobbin {

namespace {

// What the handler looks through: it can take no lock and allocate nothing.
struct Region {
  std::atomic<std::uintptr_t> start{0};
  std::atomic<std::size_t> bytes{0};
  std::atomic<bool> isCut{false};
};
constexpr std::size_t REGIONS = 4096;
std::array<Region, REGIONS> regions;
std::mutex regionsMutex;
std::size_t pageBytes = 4096;

void onBusError(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<std::uintptr_t>(info->si_addr);
  for (Region& region : regions) {
    const auto start = region.start.load(std::memory_order_acquire);
    if (start == 0 || address < start || address - start >= region.bytes.load(std::memory_order_relaxed))
      continue;
    region.isCut.store(true, std::memory_order_relaxed);
    auto* page = reinterpret_cast<void*>(address & ~(pageBytes - 1));
    if (::mmap(page, pageBytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED)
      return;
  }
  // Not ours: die of it, as without a handler.
  ::signal(SIGBUS, SIG_DFL);
  ::raise(SIGBUS);
}

}  // namespace

void installMappingGuard() {
  pageBytes = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
  struct sigaction action {};
  action.sa_sigaction = onBusError;
  action.sa_flags = SA_SIGINFO;
  ::sigemptyset(&action.sa_mask);
  ::sigaction(SIGBUS, &action, nullptr);
}

std::unique_ptr<IndexFile> IndexFile::open(const CacheFolder& cache, const std::string& indexPath,
                                           const std::string& manifestPath, std::string& reason) {
  std::unique_ptr<IndexFile> opened(new IndexFile);
  opened->indexPath_ = indexPath;
  opened->manifestPath_ = manifestPath;
  int error = 0;
  opened->manifest_ = cache.openFile(manifestPath, error);
  if (!opened->manifest_) {
    reason = "cannot open " + manifestPath + ": " + errorText(error);
    return nullptr;
  }
  const Fd file = cache.openFile(indexPath, error);
  struct stat stats {};
  if (!file || ::fstat(file.get(), &stats) != 0 || !S_ISREG(stats.st_mode) || stats.st_size <= 0) {
    reason = "cannot open " + indexPath + ": " + (file ? "it is not a file with bytes" : errorText(error));
    return nullptr;
  }
  opened->mappedBytes_ = static_cast<std::size_t>(stats.st_size);
  void* mapped = ::mmap(nullptr, opened->mappedBytes_, PROT_READ, MAP_SHARED, file.get(), 0);
  if (mapped == MAP_FAILED) {
    reason = "cannot map " + indexPath + ": " + errorText(errno);
    return nullptr;
  }
  opened->mapped_ = mapped;
  {
    const std::lock_guard lock(regionsMutex);
    for (std::size_t i = 0; i < REGIONS && opened->region_ < 0; i++) {
      Region& region = regions[i];
      if (region.start.load(std::memory_order_relaxed) != 0) continue;
      region.isCut.store(false, std::memory_order_relaxed);
      region.bytes.store(opened->mappedBytes_, std::memory_order_relaxed);
      region.start.store(reinterpret_cast<std::uintptr_t>(mapped), std::memory_order_release);
      opened->region_ = static_cast<int>(i);
    }
  }
  if (opened->region_ < 0) {
    reason = "there are " + std::to_string(REGIONS) + " mounts already";
    return nullptr;
  }
  opened->view_ = IndexView::open({static_cast<const std::uint8_t*>(mapped), opened->mappedBytes_}, reason);
  if (opened->view_ == nullptr) return nullptr;
  return opened;
}

IndexFile::~IndexFile() {
  view_.reset();
  if (region_ >= 0) regions[static_cast<std::size_t>(region_)].start.store(0, std::memory_order_release);
  if (mapped_ != nullptr) ::munmap(mapped_, mappedBytes_);
}

bool IndexFile::isCut() const {
  return regions[static_cast<std::size_t>(region_)].isCut.load(std::memory_order_relaxed);
}

std::optional<std::string> IndexFile::manifestText(const Span& span) const {
  std::string text(span.bytes, '\0');
  for (std::size_t done = 0; done < text.size();) {
    const auto n = ::pread(manifest_.get(), text.data() + done, text.size() - done,
                           static_cast<off_t>(span.offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return std::nullopt;
    done += static_cast<std::size_t>(n);
  }
  if (crc32({reinterpret_cast<const std::uint8_t*>(text.data()), text.size()}) != span.crc)
    return std::nullopt;
  return text;
}

}  // namespace bobbin
