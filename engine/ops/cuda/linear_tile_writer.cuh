#pragma once

#include "engine/ops/cuda/linear_epilogue.cuh"
#include "engine/ops/cuda/linear_heads.cuh"

// The tile kernel's epilogues: what a warpgroup does with its 64 rows by N outputs, as wgmma leaves
// them. A thread holds, of rows `token` and `token + 8`, two neighbouring outputs of every 8.
//
// Where they are many, values are computed first and stored together, and copies of them after
// that: a store at a time would wait for each value's own chain.

namespace thaw::ops::cuda {

/// Stores what belongs at `at`, and its copies.
template <typename T>
__device__ __forceinline__ void put(const LinearOut& out, T* at, const T& value) {
  *at = value;
  for (int i = 0; i < out.num_copies; ++i)
    *reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(at) + out.copies[i]) = value;
}

/// Stores values[i] at at(i) where inside(i), and their copies.
template <typename T, int Count, typename At, typename Inside>
__device__ __forceinline__ void put_all(const LinearOut& out, const T (&values)[Count], At at,
                                        Inside inside) {
#pragma unroll
  for (int i = 0; i < Count; ++i)
    if (inside(i)) *at(i) = values[i];
  for (int copy = 0; copy < out.num_copies; ++copy) {
#pragma unroll
    for (int i = 0; i < Count; ++i)
      if (inside(i))
        *reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(at(i)) + out.copies[copy]) =
            values[i];
  }
}

/// One float32 output, whose bias has been added.
template <Epilogue E>
__device__ __forceinline__ void store_f32(const LinearOut& out, int token, int row, float value) {
  float* at = static_cast<float*>(out.data) + token * out.stride + row;
  put(out, at, E == Epilogue::kAddF32 ? __fadd_rn(*at, value) : value);
}

// Outputs `row` and `row + 1` of a token, as one write where they exist and are aligned.
template <Epilogue E>
__device__ __forceinline__ void store_pair(const LinearOut& out, int token, int row, float first,
                                           float second) {
  if constexpr (E == Epilogue::kBf16) {
    Bf16* at = static_cast<Bf16*>(out.data) + token * out.stride + row;
    if (row + 1 < out.rows && out.stride % 2 == 0) {
      *reinterpret_cast<std::uint32_t*>(at) = ptx::pack_bf16(first, second);
    } else {
      if (row < out.rows) at[0] = __float2bfloat16_rn(first);
      if (row + 1 < out.rows) at[1] = __float2bfloat16_rn(second);
    }
  } else if (E == Epilogue::kF32 && row + 1 < out.rows && out.stride % 2 == 0) {
    put(out, reinterpret_cast<float2*>(static_cast<float*>(out.data) + token * out.stride + row),
        {first, second});
  } else {
    if (row < out.rows) store_f32<E>(out, token, row, first);
    if (row + 1 < out.rows) store_f32<E>(out, token, row + 1, second);
  }
}

// Each lane of four holds two neighbouring outputs of four groups of 8; afterwards each holds one
// group's 8.
__device__ __forceinline__ uint4 gather_group(std::uint32_t v0, std::uint32_t v1, std::uint32_t v2,
                                              std::uint32_t v3) {
  const int lane = threadIdx.x % 4;
  const bool odd = lane % 2 != 0;
  const std::uint32_t low = __shfl_xor_sync(0xffffffff, odd ? v0 : v1, 1);
  const std::uint32_t high = __shfl_xor_sync(0xffffffff, odd ? v2 : v3, 1);
  // Pairs of lanes: of groups 0 and 1, and of groups 2 and 3.
  const uint2 front = odd ? uint2{low, v1} : uint2{v0, low};
  const uint2 back = odd ? uint2{high, v3} : uint2{v2, high};
  const bool second = lane >= 2;
  const uint2 sent = second ? front : back;
  const std::uint32_t x = __shfl_xor_sync(0xffffffff, sent.x, 2);
  const std::uint32_t y = __shfl_xor_sync(0xffffffff, sent.y, 2);
  return second ? uint4{x, y, back.x, back.y} : uint4{front.x, front.y, x, y};
}

// Each lane of two holds two neighbouring outputs of two groups; afterwards each holds four of one:
// an even lane of the first group.
__device__ __forceinline__ float4 gather_half(float2 first, float2 second) {
  const bool odd = threadIdx.x % 2 != 0;
  const float x = __shfl_xor_sync(0xffffffff, odd ? first.x : second.x, 1);
  const float y = __shfl_xor_sync(0xffffffff, odd ? first.y : second.y, 1);
  return odd ? float4{x, y, second.x, second.y} : float4{first.x, first.y, x, y};
}

// What a thread's rows of a tile are, and where they go: where `wide`, 16 bytes at a time, or 8
// where registers are few.
template <int R, int N, Epilogue E>
struct TileWriter {
  static constexpr bool kFloats = E == Epilogue::kF32 || E == Epilogue::kAddF32;
  static constexpr int kPiece = R == 3 || N / 16 < 8 ? 4 : 8;  // 16 bytes each
  static constexpr bool kLoadsAhead = E == Epilogue::kAddF32 && R == 2;
  static constexpr int kPieces = N / 16 / kPiece;  // of a row
  static_assert(kPieces > 0);
  const LinearOut& out;
  const RopeAndStoreParams& heads;  // of kBf16; without qkv: none
  int token;  // and 8 further
  int row;  // the tile's first output
  bool wide;

  __device__ TileWriter(const LinearOut& o, const RopeAndStoreParams& h, int first_token,
                        int first_row)
      : out(o),
        heads(h),
        token(first_token + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4),
        row(first_row) {
    constexpr int kPer16 = kFloats ? 4 : 8;
    wide = E != Epilogue::kSwigluTiles && first_row + N <= o.rows && o.stride % kPer16 == 0 &&
           reinterpret_cast<std::uintptr_t>(o.data) % 16 == 0;
  }

  __device__ bool has(int half) const { return token + half * 8 < out.num_rows; }
  __device__ float4* quad(int half, int i) const {
    const int lane = threadIdx.x % 4;
    return reinterpret_cast<float4*>(static_cast<float*>(out.data) +
                                     (token + half * 8) * out.stride + row +
                                     (2 * i + lane % 2) * 8 + lane / 2 * 4);
  }

  __device__ void add_bias(float (&d)[N / 2]) const {
#pragma unroll
    for (int j = 0; j < N / 8; ++j) {
      const int r = row + j * 8 + threadIdx.x % 4 * 2;
      const float2 bias = {r < out.rows ? out.bias[r] : 0.0F,
                           r + 1 < out.rows ? out.bias[r + 1] : 0.0F};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        d[4 * j + 2 * half] = __fadd_rn(d[4 * j + 2 * half], bias.x);
        d[4 * j + 2 * half + 1] = __fadd_rn(d[4 * j + 2 * half + 1], bias.y);
      }
    }
  }

  // What a piece of a row of kAddF32 holds before.
  __device__ void load(int piece, float4 (&old)[kPiece]) const {
    const int half = piece / kPieces;
    if (!wide || !has(half)) return;
#pragma unroll
    for (int i = 0; i < kPiece; ++i)
      old[i] = *quad(half, piece % kPieces * kPiece + i);
  }

  __device__ void sum(int piece, const float (&d)[N / 2], float4 (&old)[kPiece]) const {
    const int half = piece / kPieces;
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      const int group = 2 * (piece % kPieces * kPiece + i);  // of 8 outputs, and the next
      const int at = 4 * group + 2 * half;
      const float4 v = gather_half({d[at], d[at + 1]}, {d[at + 4], d[at + 5]});
      if constexpr (E == Epilogue::kAddF32)
        old[i] = {__fadd_rn(old[i].x, v.x), __fadd_rn(old[i].y, v.y), __fadd_rn(old[i].z, v.z),
                  __fadd_rn(old[i].w, v.w)};
      else
        old[i] = v;
    }
  }

  __device__ void store_piece(int piece, const float4 (&values)[kPiece]) const {
    const int half = piece / kPieces;
    if (!has(half)) return;
    put_all(
        out, values, [&](int i) { return quad(half, piece % kPieces * kPiece + i); },
        [](int) { return true; });
  }

  // kAddF32 with few registers: 8 bytes at a time.
  __device__ void add(int half, const float (&d)[N / 2]) const {
    constexpr int kBatch = 8;
    if (!has(half)) return;
    const auto at = [&](int j) {
      return reinterpret_cast<float2*>(static_cast<float*>(out.data) +
                                       (token + half * 8) * out.stride + row + threadIdx.x % 4 * 2 +
                                       j * 8);
    };
#pragma unroll
    for (int first = 0; first < N / 8; first += kBatch) {
      float2 sums[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i)
        sums[i] = *at(first + i);
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int j = 4 * (first + i) + 2 * half;
        sums[i] = {__fadd_rn(sums[i].x, d[j]), __fadd_rn(sums[i].y, d[j + 1])};
      }
      put_all(
          out, sums, [&](int i) { return at(first + i); }, [](int) { return true; });
    }
  }

  // Whether anything is left to be stored in the output.
  __device__ bool store_heads(float (&d)[N / 2]) const {
    if constexpr (N % 128 == 0) {
      if (heads.shape.head_dim == 128) {
        TileHeads<N, 128>{heads, token, row / 128}.turn_and_store(d);
        return row < heads.shape.num_heads * 128;
      }
    }
    TileHeads<N, 64>{heads, token, row / 64}.turn_and_store(d);
    return row < heads.shape.num_heads * 64;
  }

  __device__ void store_swiglu(int half, const float (&d)[N / 2]) const {
    std::uint32_t pairs[N / 16];
#pragma unroll
    for (int j = 0; j < N / 16; ++j)  // columns 16j .. 16j+7 are gates, the next 8 their ups
      pairs[j] = ptx::pack_bf16(swiglu(d[8 * j + 2 * half], d[8 * j + 4 + 2 * half]),
                                swiglu(d[8 * j + 2 * half + 1], d[8 * j + 4 + 2 * half + 1]));
    if (!has(half)) return;
    const int width = out.rows / 2;
    put_all(
        out, pairs,
        [&](int j) {
          return reinterpret_cast<std::uint32_t*>(
              static_cast<Bf16*>(out.data) +
              tiles_index(token + half * 8, row / 2 + j * 8, static_cast<int>(out.stride)) +
              threadIdx.x % 4 * 2);
        },
        [&](int j) { return row / 2 + j * 8 < width; });
  }

  __device__ void store_bf16(int half, const float (&d)[N / 2]) const {
#pragma unroll
    for (int j = 0; j < N / 32; ++j) {
      std::uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int at = 4 * (4 * j + i) + 2 * half;
        v[i] = ptx::pack_bf16(d[at], d[at + 1]);
      }
      const uint4 group = gather_group(v[0], v[1], v[2], v[3]);
      if (has(half))
        *reinterpret_cast<uint4*>(static_cast<Bf16*>(out.data) + (token + half * 8) * out.stride +
                                  row + (4 * j + threadIdx.x % 4) * 8) = group;
    }
  }

  // `old`: what load(0, ...) brought, where kLoadsAhead.
  __device__ void store(float (&d)[N / 2], float4 (&old)[kPiece]) const {
    if (E != Epilogue::kSwigluTiles && out.bias != nullptr) add_bias(d);
    if (E == Epilogue::kBf16 && heads.qkv != nullptr && !store_heads(d)) return;
    if constexpr (E == Epilogue::kSwigluTiles) {
      store_swiglu(0, d);
      store_swiglu(1, d);
    } else if (!wide) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int j = 0; j < N / 8; ++j)
          if (has(half))
            store_pair<E>(out, token + half * 8, row + threadIdx.x % 4 * 2 + j * 8,
                          d[4 * j + 2 * half], d[4 * j + 2 * half + 1]);
    } else if constexpr (E == Epilogue::kAddF32 && !kLoadsAhead) {
      add(0, d);
      add(1, d);
    } else if constexpr (kFloats) {
#pragma unroll
      for (int piece = 0; piece < 2 * kPieces; ++piece) {
        sum(piece, d, old);
        float4 next[kPiece];  // on its way while this one is written
        if (kLoadsAhead && piece + 1 < 2 * kPieces) load(piece + 1, next);
        store_piece(piece, old);
#pragma unroll
        for (int i = 0; i < kPiece; ++i)
          old[i] = next[i];
      }
    } else {
      store_bf16(0, d);
      store_bf16(1, d);
    }
  }
};

}  // namespace thaw::ops::cuda
