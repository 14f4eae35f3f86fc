#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <thread>

#include "engine/base/result.h"
#include "engine/base/thread_pool.h"
#include "engine/model/load.h"
#include "engine/model/source.h"
#include "engine/model/source_record.h"

namespace thaw::model {

struct ImageCacheOptions {
  std::string directory;  ///< made where it is missing
  std::uint64_t max_bytes = 0;  ///< of all images in it; 0: nothing is looked up or kept
  bool verify_source =
      false;  ///< hash the checkpoint's files even where nothing about them changed
};

/// Packed images on disk, so that a start maps what an earlier one packed. An image is named by
/// what decides its bytes: the digest of the checkpoint's files, configuration, layout and packing
/// version. Its table has a digest and its tensors have checksums, all of which are compared before
/// it is used; whatever does not match is removed and packed again. A cache that cannot be read or
/// written costs a warning: the image is then packed into memory.
///
/// Images are written under a temporary name, synced and renamed, so a file with an image's name is
/// whole; of several processes that pack the same one, the last to rename wins, and all have what
/// they packed. An image stays valid for those who opened it after it was removed.
///
/// Not thread-safe. Its own thread finishes what load() leaves to do.
class ImageCache {
 public:
  /// REQUIRES: the checkpoints that load() gets are opened after this (SourceRecord::describes).
  explicit ImageCache(ImageCacheOptions options);
  /// Ends what is not finished: an image that is not yet on the disk is given up.
  ~ImageCache();
  ImageCache(const ImageCache&) = delete;
  ImageCache& operator=(const ImageCache&) = delete;

  /// The image of a checkpoint, open for reading: mapped in microseconds by whoever gets it.
  /// Errors: those of plan_image and write_image that are the checkpoint's.
  Result<LoadedImage> load(const ModelSource& source, const ops::PackingOptions& packing,
                           ThreadPool& threads);

  /// Waits until the last image that load() packed is in its place, or was given up.
  void wait();

 private:
  struct Naming;

  Result<LoadedImage> pack(ImagePlan& plan, const Naming& naming, ThreadPool& threads);
  void finish_in_background(std::function<void(const std::stop_token&)> work);

  ImageCacheOptions options_;
  std::int64_t made_at_ns_ = 0;
  std::jthread finisher_;
};

}  // namespace thaw::model
