#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/memory_map.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/model/config.h"
#include "engine/model/source.h"
#include "engine/ops/packed_weight.h"
#include "engine/ops/weight_tiles.h"

namespace thaw::model {

/// Where an image came from.
enum class ImageOrigin {
  kMemory,  ///< packed into a memfd
  kPacked,  ///< packed into a file of the image cache
  kMapped,  ///< found in the image cache
};

/// A WeightImage ready to be handed to worker processes.
struct LoadedImage {
  UniqueFd fd;  ///< memfd, or a file that is open for reading
  std::size_t size_bytes = 0;
  ModelConfig config;
  Hash128 digest;
  ImageOrigin origin = ImageOrigin::kMemory;
};

/// A stored tensor and where its rows go in the entry that it is a part of.
struct PlannedPart {
  const checkpoint::StoredTensor* stored;
  ops::cuda::WeightRows placement = ops::cuda::WeightRows::kPlain;
  std::int64_t first_row = 0;
};

/// An entry of the image: one stored tensor, or for CUDA all that one launch reads.
struct PlannedTensor {
  std::string name;
  ops::Packing packing = ops::Packing::kVectorF32;
  std::int64_t rows = 0;  ///< outputs of all parts; 1 for vectors
  std::int64_t cols = 0;  ///< inputs; of a vector the values of all parts
  std::size_t size_bytes = 0;
  std::vector<PlannedPart> parts;
};

/// What an image will hold, before any of its bytes exist. The source must outlive it.
struct ImagePlan {
  const ModelSource* source;
  std::vector<PlannedTensor> tensors;
  checkpoint::WeightImagePlanner layout;  ///< entries in the order of `tensors`
};

/// `source_digest`: that of source.tensors, which takes a pass over the files to compute. Errors
/// name the file and a tensor: missing, misshapen, or one that nothing asked for; kUnsupported
/// where `packing` is for CUDA and its kernels cannot compute the model (check_cuda_model).
Result<ImagePlan> plan_image(const ModelSource& source, const ops::PackingOptions& packing,
                             const Hash128& source_digest);

/// Packs every tensor and writes the image to `fd`, a few MiB at a time: what is resident meanwhile
/// is one such slab and the pages of one stored tensor. Errors: a stored tensor that cannot be
/// packed, named; kIo.
Result<void> write_image(ImagePlan& plan, int fd, ThreadPool& threads);

/// Plans and writes an image into a new memfd.
Result<LoadedImage> build_image(const ModelSource& source, const ops::PackingOptions& packing,
                                ThreadPool& threads);
/// The same for a plan that was made before.
Result<LoadedImage> build_image(ImagePlan& plan, ThreadPool& threads);

}  // namespace thaw::model
