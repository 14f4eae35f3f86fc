#pragma once

#include "engine/base/result.h"
#include "engine/cuda/buffer.h"
#include "engine/model/cuda/device_image.h"
#include "engine/model/tensor_parallel.h"

namespace thaw::model {

/// Brings a rank's part of an image from the image's file to the current device: reads and copies
/// of several threads at once, of these bytes and no others. What lies between the entries of `to`
/// is left as it is. Waits. REQUIRES: to.size() >= plan.total_bytes. Errors: as upload_image().
Result<UploadReport> upload_shard(int fd, const ShardPlan& plan, cuda::DeviceSpan<std::byte> to,
                                  const UploadOptions& options = {});

}  // namespace thaw::model
