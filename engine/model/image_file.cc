#include "engine/model/image_file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "engine/base/file.h"

namespace thaw::model {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDraftSuffix = ".draft";
constexpr std::chrono::minutes kDraftGrace{1};
constexpr std::uint64_t kSyncStepBytes = std::uint64_t{64} << 20;

Error does_not_match(const std::string& what) {
  return make_error(Errc::kDataLoss, what);
}

/// Whether the image's table is the planned one, given the checksums that it names itself.
bool is_planned(const checkpoint::WeightImageView& view, checkpoint::WeightImagePlanner layout) {
  if (view.entries().size() != layout.entries().size()) return false;
  for (std::size_t i = 0; i < view.entries().size(); ++i)
    layout.set_checksum(i, view.entries()[i].crc32c);
  const std::string header = layout.header();
  return header.size() == view.header().size() &&
         std::memcmp(header.data(), view.header().data(), header.size()) == 0;
}

}  // namespace

Result<std::optional<LoadedImage>> open_image_file(const std::string& path, const ImagePlan& plan,
                                                   ThreadPool& threads) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd && errno == ENOENT) return std::optional<LoadedImage>();
  if (!fd) return io_error("cannot open it", errno);
  struct stat info {};
  if (::fstat(fd.get(), &info) != 0) return io_error("cannot stat it", errno);
  const auto size_bytes = static_cast<std::size_t>(plan.layout.total_bytes());
  if (!S_ISREG(info.st_mode)) return does_not_match("it is not a regular file");
  if (static_cast<std::size_t>(info.st_size) != size_bytes) {
    return does_not_match("it has " + std::to_string(info.st_size) + " bytes, not " +
                          std::to_string(size_bytes));
  }
  const auto mapping = map_fd(fd.get(), size_bytes, MapAccess::kReadOnly);
  if (!mapping) return mapping.error();
  const auto view = checkpoint::WeightImageView::open(mapping->bytes());
  if (!view) return view.error();
  if (!is_planned(*view, plan.layout)) return does_not_match("it is an image of something else");
  if (auto verified = view->verify(threads); !verified) return verified.error();
  return std::optional(LoadedImage{std::move(fd), size_bytes, plan.source->config, view->digest(),
                                   ImageOrigin::kMapped});
}

Result<ImageDraft> ImageDraft::create(const std::string& directory, std::uint64_t size_bytes) {
  std::string path = directory + "/XXXXXX" + kDraftSuffix;
  UniqueFd fd(::mkostemps(path.data(), static_cast<int>(std::strlen(kDraftSuffix)), O_CLOEXEC));
  if (!fd) return io_error("cannot create a file in " + directory, errno);
  ImageDraft draft(std::move(fd), std::move(path));
  if (::flock(draft.fd(), LOCK_EX | LOCK_NB) != 0) return io_error("cannot lock a draft", errno);
  // Reserved now, so that a full disk shows before the work is done.
  const int error = ::posix_fallocate(draft.fd(), 0, static_cast<off_t>(size_bytes));
  if (error != 0) {
    return io_error("cannot reserve " + std::to_string(size_bytes) + " bytes in " + directory,
                    error);
  }
  return draft;
}

ImageDraft::ImageDraft(ImageDraft&& other) noexcept
    : fd_(std::move(other.fd_)), path_(std::exchange(other.path_, {})) {}

ImageDraft::~ImageDraft() {
  if (!path_.empty()) ::unlink(path_.c_str());
}

Result<UniqueFd> ImageDraft::open_for_reading() const {
  UniqueFd reader(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  if (!reader) return io_error("cannot open " + path_, errno);
  return reader;
}

Result<void> ImageDraft::publish(const std::string& path, const std::stop_token& stop) {
  const auto size = fd_size_bytes(fd());
  if (!size) return size.error();
  // In steps, so that a large image on a slow disk does not hold up the end of a process.
  for (std::uint64_t at = 0; at < *size && !stop.stop_requested(); at += kSyncStepBytes) {
    ::sync_file_range(
        fd(), static_cast<off64_t>(at), static_cast<off64_t>(kSyncStepBytes),
        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
  }
  if (stop.stop_requested()) {
    return make_error(Errc::kCancelled, "the process ended before the disk had everything");
  }
  if (::fchmod(fd(), 0444) != 0 || ::fsync(fd()) != 0)
    return io_error("cannot sync " + path_, errno);
  if (::rename(path_.c_str(), path.c_str()) != 0) return io_error("cannot rename " + path_, errno);
  path_.clear();
  return sync_directory(fs::path(path).parent_path().string());
}

void remove_abandoned_drafts(const std::string& directory) {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    if (entry.path().extension() != kDraftSuffix) continue;
    std::error_code gone;
    const auto written = entry.last_write_time(gone);
    // A new one may not be locked yet.
    if (gone || written + kDraftGrace > fs::file_time_type::clock::now()) continue;
    const UniqueFd fd(::open(entry.path().c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
    if (fd && ::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) ::unlink(entry.path().c_str());
  }
}

}  // namespace thaw::model
