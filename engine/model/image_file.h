#pragma once

#include <optional>
#include <stop_token>
#include <string>

#include "engine/base/result.h"
#include "engine/base/thread_pool.h"
#include "engine/base/unique_fd.h"
#include "engine/model/load.h"

namespace thaw::model {

/// Opens the image that `plan` describes and compares every byte of it: table, places, checksums.
/// Nothing where there is no such file. Errors: kDataLoss, saying what does not match; kIo.
Result<std::optional<LoadedImage>> open_image_file(const std::string& path, const ImagePlan& plan,
                                                   ThreadPool& threads);

/// An image that is being written under a temporary name. While it lives a lock keeps
/// remove_abandoned() of other processes from it. Move-only; destruction removes what was not
/// published.
class ImageDraft {
 public:
  /// In `directory`, with room for `size_bytes` reserved on the disk. Errors: kIo.
  static Result<ImageDraft> create(const std::string& directory, std::uint64_t size_bytes);
  ImageDraft(ImageDraft&& other) noexcept;
  ImageDraft& operator=(ImageDraft&&) = delete;
  ~ImageDraft();

  /// For writing.
  int fd() const { return fd_.get(); }
  /// For those who use it: it stays the same file when it is published.
  Result<UniqueFd> open_for_reading() const;

  /// Waits for the disk and renames it to `path`. Errors: kIo; kCancelled where `stop` was
  /// requested before the disk had everything.
  Result<void> publish(const std::string& path, const std::stop_token& stop);

 private:
  ImageDraft(UniqueFd fd, std::string path) : fd_(std::move(fd)), path_(std::move(path)) {}

  UniqueFd fd_;
  std::string path_;  ///< empty once published
};

/// Removes drafts in `directory` whose process ended before it published them.
void remove_abandoned_drafts(const std::string& directory);

}  // namespace thaw::model
