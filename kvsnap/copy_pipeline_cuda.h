#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "engine/base/result.h"
#include "engine/cuda/stream.h"
#include "kvsnap/copy_pipeline.h"
#include "kvsnap/overlapped_pipeline.h"

namespace thaw::kvsnap {

/// The GPU's pipeline: whole blocks by the copy engine, in chunks on two non-blocking streams of
/// the current device; out of a peer's memory by a kernel (PeerCopy) where they lie scattered.
/// Checksums by a kernel, of the bytes in the device's memory: beside each chunk that is sent,
/// behind each that arrives; of blocks in parts by CPU threads (OverlappedPipeline). Each copy
/// begins after what `compute` held when it was launched: a snapshot reads what those steps write,
/// a restore writes where they may still write. Nothing here synchronises the device. Only whole
/// blocks move, so the copies are megabytes each and no kernel gathers anything.
///
/// The arena's memory must be pinned (PinnedRange), or every copy blocks and goes through a staging
/// buffer of the driver; `compute` must outlive the pipeline. Errors: the device has no more
/// streams or events.
Result<std::unique_ptr<CopyPipeline>> make_cuda_copy_pipeline(cuda::StreamView compute,
                                                              const OverlapOptions& options);

/// KV blocks in parts, each part on a device of its own: a block is rows of `row_bytes`, and every
/// part holds as many bytes of each row, one row after another, block after block. In the arena
/// rows are whole, so a snapshot does not tell how many parts there were.
struct SplitBlocks {
  std::byte* base = nullptr;  ///< what the pieces' addresses count from; nothing need lie there
  std::size_t row_bytes = 0;  ///< divides a block's bytes
  std::vector<std::byte*> parts;  ///< of each row in order; mapped by the current device
};

/// The same of blocks in parts: strided copies, all by the current device's engine, which reaches
/// the other devices' memory through their mappings. What `compute` has done when it reaches the
/// mark of a copy must be done on the other devices as well. Errors: as above; kInvalidArgument
/// where the parts do not divide a row.
Result<std::unique_ptr<CopyPipeline>> make_split_copy_pipeline(cuda::StreamView compute,
                                                               const SplitBlocks& blocks,
                                                               const OverlapOptions& options);

}  // namespace thaw::kvsnap
