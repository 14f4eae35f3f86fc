#pragma once

#include <cstdint>
#include <span>

#include "engine/ops/device.h"

namespace thaw::ops {

/// out = x / sqrt(mean(x^2) + eps) * weight, per row. x, out: [num_rows, width] float32; may alias.
/// Source: Zhang and Sennrich, arXiv:1910.07467.
void rms_norm(Device& device, const float* x, const float* weight, float eps, int num_rows,
              int width, float* out);

/// x[row] += bias, x: [num_rows, width] float32.
void add_bias(Device& device, float* x, const float* bias, int num_rows, int width);

/// x += y, [count] float32.
void add_in_place(Device& device, float* x, const float* y, std::int64_t count);

/// out = silu(gate) * up, [count] float32; out may alias gate. Source: Shazeer, arXiv:2002.05202.
void swiglu(Device& device, const float* gate, const float* up, std::int64_t count, float* out);

/// Rotates pairs in place, x: [num_rows, num_heads, head_dim] float32. Pair i of a head is
/// (x[i], x[i + rotary_dim/2]) when `half_split`, else (x[2i], x[2i+1]) (GGUF's permuted Llama
/// order). cos/sin: [max_position, rotary_dim/2], computed in double and rounded once
/// (make_rope_table). Source: Su et al., arXiv:2104.09864.
struct RopeTable {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int rotary_dim = 0;
  bool half_split = false;
};
void rope(Device& device, const RopeTable& table, std::span<const std::int32_t> positions,
          int num_heads, int head_dim, float* x);

}  // namespace thaw::ops
