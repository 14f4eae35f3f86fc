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

/// Writes KV blocks into leased extents of the arena. Not thread-safe.
class SnapshotWriter {
 public:
  /// A write under way; finish() each once. Its blocks must stay as they are until then.
  struct Pending {
    Manifest manifest;
    CopyHandle copy = 0;
  };

  /// `arena` and `pipeline` must outlive the writer.
  SnapshotWriter(const ArenaView& arena, CopyPipeline& pipeline, KvFormat format)
      : arena_(&arena), pipeline_(&pipeline), format_(std::move(format)) {}

  /// Starts copying. `manifest` names tokens and leased extents; `blocks` is where the KV of its
  /// blocks lies, in order. Errors, with nothing written: check_manifest()'s; kInvalidArgument for
  /// another number of blocks.
  Result<Pending> start(Manifest manifest, const Hash128& cache_root,
                        std::span<const std::byte* const> blocks);
  /// Whether finish() would return at once.
  bool done(const Pending& pending) const { return pipeline_->done(pending.copy); }
  /// The checksums of the first extents, those that are written already.
  std::vector<std::uint32_t> written(const Pending& pending) const {
    return pipeline_->checked(pending.copy);
  }
  /// Waits. The manifest with its checksums.
  Result<Manifest> finish(Pending pending);

 private:
  const ArenaView* arena_;
  CopyPipeline* pipeline_;
  KvFormat format_;
};

}  // namespace thaw::kvsnap
