#pragma once

#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "engine/base/result.h"
#include "kvsnap/arena_memory.h"
#include "kvsnap/copy_pipeline.h"
#include "kvsnap/manifest.h"

namespace thaw::kvsnap {

/// Copies KV blocks out of the arena and verifies them. Not thread-safe.
class SnapshotReader {
 public:
  /// A read under way; finish() each once. Its blocks mean nothing until that has succeeded.
  struct Pending {
    std::vector<Extent> extents;
    CopyHandle copy = 0;
  };

  /// `arena` and `pipeline` must outlive the reader.
  SnapshotReader(const ArenaView& arena, CopyPipeline& pipeline, KvFormat format)
      : arena_(&arena), pipeline_(&pipeline), format_(std::move(format)) {}

  /// Starts copying into `blocks`, in order, each of the format's block_bytes and published nowhere
  /// yet; null for a block that is not wanted (its bytes are verified all the same). Errors, with
  /// nothing written: check_manifest()'s; kInvalidArgument for another number of blocks.
  Result<Pending> start(const Manifest& manifest, const Hash128& cache_root,
                        std::span<std::byte* const> blocks);
  /// The same for the extents from `first` up to `end` alone, the others' bytes not being there yet
  /// or copied before; `manifest` and `blocks` are of all of them.
  Result<Pending> start(const Manifest& manifest, const Hash128& cache_root,
                        std::span<std::byte* const> blocks, std::size_t first, std::size_t end);
  /// Whether finish() would return at once.
  bool done(const Pending& pending) const { return pipeline_->done(pending.copy); }
  /// Waits. kDataLoss where the checksum of an extent differs: the blocks must not be used then.
  Result<void> finish(const Pending& pending);

 private:
  const ArenaView* arena_;
  CopyPipeline* pipeline_;
  KvFormat format_;
};

}  // namespace thaw::kvsnap
