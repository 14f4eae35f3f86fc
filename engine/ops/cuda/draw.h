#pragma once

#include <cstddef>
#include <cstdint>

#include "engine/base/draw.h"
#include "engine/cuda/stream.h"
#include "engine/ops/cuda/device.h"
#include "engine/ops/cuda/tiles.h"

namespace thaw::ops::cuda {

/// How one row is drawn.
struct DrawRow {
  double uniform = 0.0;  ///< in [0, 1): token_uniform(seed, choice_index, position) (base/random.h)
  float temperature = 0.0F;  ///< 0: the largest logit, ties to the lower id
  float min_p = 0.0F;
};

/// 32-bit words of a mask: token t is bit t % 32 of word t / 32, set where it may be drawn.
THAW_HOST_DEVICE constexpr int draw_mask_words(int vocabulary) {
  return (vocabulary + 31) / 32;
}

/// Bytes of workspace, 8-byte aligned, for `num_rows` rows.
constexpr std::size_t draw_workspace_bytes(int num_rows, int vocabulary) {
  const auto blocks = static_cast<std::size_t>(ceil_div(vocabulary, kDrawBlockTokens));
  return static_cast<std::size_t>(num_rows) * (blocks * 16 + 8);
}

struct DrawParams {
  const float* logits = nullptr;  ///< [num_rows][stride]
  std::int64_t stride = 0;
  int num_rows = 0;
  int vocabulary = 0;
  const DrawRow* rows = nullptr;  ///< [num_rows], device memory
  void* workspace = nullptr;  ///< draw_workspace_bytes(); holds nothing between calls
  std::int32_t* out = nullptr;  ///< [num_rows]; -1 where a logit is NaN or +infinity, or all are
                                ///< -infinity or barred
  /// [num_rows], device memory: which of `masks` restricts a row, -1 for none. Null: none does.
  const std::int32_t* mask_of_row = nullptr;
  const std::uint32_t* masks = nullptr;  ///< [*][draw_mask_words(vocabulary)]
};

/// Draws every row's token: what sampling::Sampler draws from the same logits with the same
/// temperature, min_p, uniform and mask, and nothing else on (rule `draw-1`, docs/exactness.md).
void draw(const CudaDevice& device, const DrawParams& params, thaw::cuda::StreamView stream);

}  // namespace thaw::ops::cuda
