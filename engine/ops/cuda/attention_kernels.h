#pragma once

// Between the files of attention; not for others.

#include "engine/cuda/stream.h"
#include "engine/ops/cuda/device.h"

namespace thaw::ops::cuda {

struct AttentionKernelParams;

void prepare_split_kernels();
void prepare_wide_kernels();
void prepare_prefill_kernels();

/// The items of the plan, of kItemRows and of kWideItemRows.
void attention_splits(const CudaDevice& device, const AttentionKernelParams& params,
                      thaw::cuda::StreamView stream);
void attention_wide_splits(const CudaDevice& device, const AttentionKernelParams& params,
                           thaw::cuda::StreamView stream);

/// The tiles of the plan.
void attention_tiles(const CudaDevice& device, const AttentionKernelParams& params,
                     thaw::cuda::StreamView stream);

}  // namespace thaw::ops::cuda
