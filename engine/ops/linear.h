#pragma once

#include <cstdint>
#include <span>

#include "engine/ops/packed_weight.h"

namespace thaw::ops {

/// One output of a linear group: out = x * weight^T, [num_rows, weight.rows] float32 row-major.
struct LinearOutput {
  WeightView weight;
  float* out = nullptr;
};

/// Several products of one input: x is [num_rows, cols] float32, all weights have `cols` inputs.
/// For quantised weights each row of x is rounded once to int8 blocks of 32 with a float scale. Sum
/// order over K per output is the same for every num_rows, device thread count and CpuIsa
/// (docs/exactness.md).
void linear(Device& device, const float* x, int num_rows, std::span<const LinearOutput> outputs);

/// The same with the rows of x in two steps of int8: x is rounded as in linear(), what that leaves
/// over is rounded once more, and out = (weight . first) + (weight . second). Some 15 bits of
/// activation at twice the integer work and the same weight traffic, for inputs where 8 bits change
/// the model's choices. Float weights are computed as in linear().
void linear_two_step(Device& device, const float* x, int num_rows,
                     std::span<const LinearOutput> outputs);

/// out[i] = row ids[i] of `table` as float32, [ids.size(), table.cols].
void embedding(Device& device, const WeightView& table, std::span<const std::int32_t> ids,
               float* out);

}  // namespace thaw::ops
