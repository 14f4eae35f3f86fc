#pragma once

// Elementwise operations and the rounding of activations. Included inside an anonymous namespace
// after one of the simd_*.h headers; docs/exactness.md states the arithmetic.

/// e^x for x that are at most kExpLargest, or NaN.
inline F32 exp_bounded(F32 x) {
  const F32 shifted = fma(x, splat(kExpLog2E), splat(kExpMagic));
  const F32 n = sub(shifted, splat(kExpMagic));
  F32 r = fma(n, splat(-kExpLn2High), x);
  r = fma(n, splat(-kExpLn2Low), r);
  F32 p = splat(kExpC6);
  p = fma(p, r, splat(kExpC5));
  p = fma(p, r, splat(kExpC4));
  p = fma(p, r, splat(kExpC3));
  p = fma(p, r, splat(kExpC2));
  p = fma(p, r, splat(1.0F));
  p = fma(p, r, splat(1.0F));
  return zero_below(x, splat(kExpSmallest), mul(p, bits_shifted_left_23(shifted)));
}

/// The same operations as exp_f32 of engine/ops/exp.h, lane by lane.
inline F32 exp(F32 x) {
  return exp_bounded(min(splat(kExpLargest), x));
}

void exp_array(const float* x, std::int64_t count, float* out) {
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    store(out + i, exp(load(x + i)));
  const int rest = static_cast<int>(count - i);
  if (rest > 0) store_first(out + i, exp(load_first(x + i, rest)), rest);
}

inline void quantize_block(const float* x, ActBlock* out) {
  constexpr std::uint32_t kInfinityBits = 0x7f800000u;
  constexpr std::uint32_t kTinyBits = 0x0d800000u;  // 2^-100
  constexpr float kMagic = 0x1.8p23F;  // adding it rounds to an integer in the low bits
  constexpr std::int32_t kMagicBits = 0x4b400000;
  const F32 low = load(x);
  const F32 high = load(x + 16);
  const std::uint32_t largest_bits = max_magnitude_bits(low, high);
  float largest;
  __builtin_memcpy(&largest, &largest_bits, 4);
  if (largest_bits >= kInfinityBits || largest_bits < kTinyBits) {
    __builtin_memset(out, 0, sizeof(*out));
    if (largest_bits >= kInfinityBits) {
      out->scale = largest;
      out->scaled_sum = largest - largest;  // NaN
    }
    return;
  }
  const F32 inverse = splat(127.0F / largest);
  out->scale = largest / 127.0F;
  out->sum_low = store_low_bytes(out->q, add(mul(low, inverse), splat(kMagic)), kMagicBits);
  out->sum_high = store_low_bytes(out->q + 16, add(mul(high, inverse), splat(kMagic)), kMagicBits);
  out->scaled_sum = out->scale * static_cast<float>(out->sum_low + out->sum_high);
}

void quantize_tile(const float* x, std::int64_t x_stride, int num_tokens, std::int64_t cols,
                   ActBlock* out) {
  for (int t = 0; t < num_tokens; ++t) {
    ActBlock* block = out + t;
    for (std::int64_t k = 0; k < cols; k += kBlockCols, block += num_tokens)
      quantize_block(x + t * x_stride + k, block);
  }
}

void rms_norm(const float* x, const float* weight, float eps, int num_rows, int width, float* out) {
  const int whole = width / 16 * 16;
  const int rest = width - whole;
  for (int row = 0; row < num_rows; ++row, x += width, out += width) {
    F32 squares = zero();
    for (int i = 0; i < whole; i += 16) {
      const F32 v = load(x + i);
      squares = fma(v, v, squares);
    }
    if (rest > 0) {
      const F32 v = load_first(x + whole, rest);
      squares = fma(v, v, squares);
    }
    const float mean = reduce_add(squares) / static_cast<float>(width);
    const F32 scale = splat(1.0F / __builtin_sqrtf(mean + eps));
    for (int i = 0; i < whole; i += 16)
      store(out + i, mul(mul(load(x + i), scale), load(weight + i)));
    if (rest > 0) {
      const F32 v = mul(mul(load_first(x + whole, rest), scale), load_first(weight + whole, rest));
      store_first(out + whole, v, rest);
    }
  }
}

void add_arrays(float* x, const float* y, std::int64_t count) {
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    store(x + i, add(load(x + i), load(y + i)));
  const int rest = static_cast<int>(count - i);
  if (rest > 0) store_first(x + i, add(load_first(x + i, rest), load_first(y + i, rest)), rest);
}

inline F32 swiglu_lanes(F32 gate, F32 up) {
  const F32 denominator = add(splat(1.0F), exp(sub(zero(), gate)));
  return mul(div(gate, denominator), up);
}

void swiglu(const float* gate, const float* up, std::int64_t count, float* out) {
  std::int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    store(out + i, swiglu_lanes(load(gate + i), load(up + i)));
  const int rest = static_cast<int>(count - i);
  if (rest > 0) {
    const F32 v = swiglu_lanes(load_first(gate + i, rest), load_first(up + i, rest));
    store_first(out + i, v, rest);
  }
}

inline void rotate_pair(float c, float s, float* a, float* b) {
  const float x = *a;
  const float y = *b;
  *a = __builtin_fmaf(x, c, -(y * s));
  *b = __builtin_fmaf(x, s, y * c);
}

void rope_row(const float* cos, const float* sin, int rotary_dim, bool half_split, int num_heads,
              int head_dim, float* x) {
  const int half = rotary_dim / 2;
  for (int head = 0; head < num_heads; ++head, x += head_dim) {
    if (half_split) {
      for (int i = 0; i < half; ++i)
        rotate_pair(cos[i], sin[i], x + i, x + half + i);
    } else {
      for (int i = 0; i < half; ++i)
        rotate_pair(cos[i], sin[i], x + 2 * i, x + 2 * i + 1);
    }
  }
}
