#pragma once

#include <memory>

#include "engine/base/result.h"
#include "engine/cuda/stream.h"
#include "kvsnap/copy_pipeline.h"
#include "kvsnap/overlapped_pipeline.h"

namespace thaw::kvsnap {

/// The GPU's pipeline: whole blocks by the copy engine, in chunks on two non-blocking streams of
/// the current device. Checksums on the way to the arena by CPU threads meanwhile, on the way from
/// it by a kernel behind each chunk, from what has arrived (OverlappedPipeline). Each copy begins
/// after what `compute` held when it was launched: a snapshot reads what those steps write, a
/// restore writes where they may still write. Nothing here synchronises the device. Only whole
/// blocks move, so the copies are megabytes each and no kernel gathers anything.
///
/// The arena's memory must be pinned (PinnedRange), or every copy blocks and goes through a staging
/// buffer of the driver; `compute` must outlive the pipeline. Errors: the device has no more
/// streams or events.
Result<std::unique_ptr<CopyPipeline>> make_cuda_copy_pipeline(cuda::StreamView compute,
                                                              const OverlapOptions& options);

}  // namespace thaw::kvsnap
