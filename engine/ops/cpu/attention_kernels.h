// Attention of a set of query rows over one split of keys. Included inside an anonymous namespace
// after one of the simd_*.h headers. Every row is computed as if it were alone: tiles only share
// the loads of K and V.

#include "engine/ops/cpu/elementwise_kernels.h"

struct KvF32 {
  using Element = float;
  static inline F32 load_lanes(const float* p) { return load(p); }
};
struct KvF16 {
  using Element = std::uint16_t;
  static inline F32 load_lanes(const std::uint16_t* p) { return load_f16(p); }
};
struct KvBF16 {
  using Element = std::uint16_t;
  static inline F32 load_lanes(const std::uint16_t* p) { return load_bf16(p); }
};

/// Slabs of the split's blocks: K is [head_dim][16 keys], V [16 keys][v_stride].
template <class Kv>
struct Slabs {
  const typename Kv::Element* k[kSplitBlocks];
  const typename Kv::Element* v[kSplitBlocks];
  int v_stride;
};

/// scores[r][16 * b + lane] for kRows rows and kBlocks blocks from first_block: per key, fma over
/// head_dim in order. q: kRows rows of q_stride floats, scaled.
template <class Kv, int kRows, int kBlocks>
inline void score_tile(const Slabs<Kv>& slabs, int first_block, int head_dim, const float* q,
                       int q_stride, float* scores) {
  const typename Kv::Element* k[kBlocks];
#pragma GCC unroll 4
  for (int b = 0; b < kBlocks; ++b)
    k[b] = slabs.k[first_block + b];
  F32 acc[kRows][kBlocks];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b)
      acc[r][b] = zero();
  }
  for (int d = 0; d < head_dim; ++d) {
    F32 keys[kBlocks];
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b)
      keys[b] = Kv::load_lanes(k[b] + d * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F32 value = splat(q[r * q_stride + d]);
#pragma GCC unroll 4
      for (int b = 0; b < kBlocks; ++b)
        acc[r][b] = fma(value, keys[b], acc[r][b]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int b = 0; b < kBlocks; ++b)
      store(scores + r * kSplitKeys + (first_block + b) * kLanes, acc[r][b]);
  }
}

/// out[r][16 * v ...] += sum over keys begin .. end - 1, in order, of p[r][key] * V[key].
template <class Kv, int kRows, int kVectors>
inline void value_tile(const Slabs<Kv>& slabs, int begin, int end, int first_dim,
                       const float* scores, float* const* out) {
  F32 acc[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      acc[r][v] = load(out[r] + first_dim + v * kLanes);
  }
  for (int key = begin; key < end;) {
    const int block = key / kLanes;
    const int block_end = (block + 1) * kLanes < end ? (block + 1) * kLanes : end;
    const typename Kv::Element* value =
        slabs.v[block] + (key - block * kLanes) * slabs.v_stride + first_dim;
    for (; key < block_end; ++key, value += slabs.v_stride) {
      F32 lanes[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        lanes[v] = Kv::load_lanes(value + v * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const F32 p = splat(scores[r * kSplitKeys + key]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          acc[r][v] = fma(p, lanes[v], acc[r][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      store(out[r] + first_dim + v * kLanes, acc[r][v]);
  }
}

template <class Kv, int kRows>
inline void add_values(const Slabs<Kv>& slabs, int begin, int end, int padded_dim,
                       const float* scores, float* const* out) {
  int dim = 0;
  for (; dim + kKeyTile * kLanes <= padded_dim; dim += kKeyTile * kLanes)
    value_tile<Kv, kRows, kKeyTile>(slabs, begin, end, dim, scores, out);
  for (; dim < padded_dim; dim += kLanes)
    value_tile<Kv, kRows, 1>(slabs, begin, end, dim, scores, out);
}

/// Scores of one row's keys begin .. end - 1 to exp(score - max); writes max and sum behind the
/// row's output. A key's lane is its place in the split, wherever the row begins.
inline void softmax_row(float* scores, int begin, int end, float* max_and_sum) {
  constexpr float kInfinity = __builtin_inff();
  const int first = begin / kLanes * kLanes;
  const int whole = end / kLanes * kLanes;
  const int rest = end - whole;
  for (int key = first; key < begin; ++key)
    scores[key] = -kInfinity;  // never the max, and exp gives +0
  F32 largest = splat(-kInfinity);
  for (int i = first; i < whole; i += kLanes)
    largest = max(load(scores + i), largest);
  if (rest > 0) largest = max(fill_after(load(scores + whole), rest, -kInfinity), largest);
  const float row_max = reduce_max(largest);
  const F32 bound = splat(row_max);
  F32 sum = zero();
  for (int i = first; i < whole; i += kLanes) {
    const F32 p = exp_bounded(sub(load(scores + i), bound));
    store(scores + i, p);
    sum = add(sum, p);
  }
  if (rest > 0) {
    const F32 p = fill_after(exp_bounded(sub(load(scores + whole), bound)), rest, 0.0F);
    store(scores + whole, p);
    sum = add(sum, p);
  }
  max_and_sum[0] = row_max;
  max_and_sum[1] = reduce_add(sum);
}

inline void scale_row(const float* q, float scale, int head_dim, float* out) {
  int d = 0;
  for (; d + kLanes <= head_dim; d += kLanes)
    store(out + d, mul(load(q + d), splat(scale)));
  if (d < head_dim) store(out + d, mul(load_first(q + d, head_dim - d), splat(scale)));
}

/// Slabs are a few KiB at places of their own, too short for the processor to guess their rest.
inline void prefetch_slab(const void* slab, int bytes) {
  for (int at = 0; at < bytes; at += 64)
    prefetch(static_cast<const char*>(slab) + at);
}

template <class Kv, int kRows>
void attend_rows(const Slabs<Kv>& slabs, const SplitArgs& args, const SplitRow* rows, float* q,
                 float* scores, int prefetch_bytes) {
  const int head_dim = args.head_dim;
  const int padded_dim = padded_head_dim(head_dim);
  // All rows see keys inner_begin .. inner_end - 1, if any; some also those before and behind.
  int outer_begin = kSplitKeys;
  int inner_begin = 0;
  int inner_end = kSplitKeys;
  int outer_end = 0;
  for (int r = 0; r < kRows; ++r) {
    outer_begin = rows[r].begin < outer_begin ? rows[r].begin : outer_begin;
    inner_begin = rows[r].begin > inner_begin ? rows[r].begin : inner_begin;
    inner_end = rows[r].end < inner_end ? rows[r].end : inner_end;
    outer_end = rows[r].end > outer_end ? rows[r].end : outer_end;
    scale_row(rows[r].q, args.scale, head_dim, q + r * padded_dim);
  }
  const int blocks = (outer_end + kLanes - 1) / kLanes;
  int block = outer_begin / kLanes;
  for (; block + kKeyTile <= blocks; block += kKeyTile) {
    if (prefetch_bytes > 0) {
      for (int b = block; b < block + kKeyTile; ++b) {
        if (b + kKeyTile < blocks) prefetch_slab(slabs.k[b + kKeyTile], prefetch_bytes);
        prefetch_slab(slabs.v[b], prefetch_bytes);
      }
    }
    score_tile<Kv, kRows, kKeyTile>(slabs, block, head_dim, q, padded_dim, scores);
  }
  for (; block < blocks; ++block)
    score_tile<Kv, kRows, 1>(slabs, block, head_dim, q, padded_dim, scores);

  float* out[kRows];
  for (int r = 0; r < kRows; ++r) {
    out[r] = rows[r].partial;
    for (int d = 0; d < padded_dim; d += kLanes)
      store(out[r] + d, zero());
    softmax_row(scores + r * kSplitKeys, rows[r].begin, rows[r].end, out[r] + padded_dim);
  }
  // A row adds what not all of the tile see on its own, in order, and never touches what lies
  // before its begin or behind its end.
  if (inner_begin > inner_end) inner_begin = inner_end = outer_end;
  for (int r = 0; r < kRows; ++r) {
    const int until = rows[r].end < inner_begin ? rows[r].end : inner_begin;
    if (rows[r].begin < until) {
      add_values<Kv, 1>(slabs, rows[r].begin, until, padded_dim, scores + r * kSplitKeys, out + r);
    }
  }
  if (inner_begin < inner_end)
    add_values<Kv, kRows>(slabs, inner_begin, inner_end, padded_dim, scores, out);
  for (int r = 0; r < kRows; ++r) {
    if (inner_end < rows[r].end) {
      add_values<Kv, 1>(slabs, inner_end, rows[r].end, padded_dim, scores + r * kSplitKeys,
                        out + r);
    }
  }
}

template <class Kv>
void attend_split(const Slabs<Kv>& slabs, const SplitArgs& args) {
  float* q = args.scratch;
  float* scores = args.scratch + kMaxQueryTile * padded_head_dim(args.head_dim);
  int row = 0;
  while (row < args.num_rows) {
    const int left = args.num_rows - row;
    const int prefetch_bytes = row == 0 ? args.prefetch_bytes : 0;
    const SplitRow* rows = args.rows + row;
    if constexpr (kRowTile >= 6) {
      if (left >= 6) {
        attend_rows<Kv, 6>(slabs, args, rows, q, scores, prefetch_bytes);
        row += 6;
        continue;
      }
      if (left >= 4) {
        if (left == 4) {
          attend_rows<Kv, 4>(slabs, args, rows, q, scores, prefetch_bytes);
        } else {
          attend_rows<Kv, 5>(slabs, args, rows, q, scores, prefetch_bytes);
        }
        row += left;
        continue;
      }
    }
    if constexpr (kRowTile >= 3) {
      if (left >= 3) {
        attend_rows<Kv, 3>(slabs, args, rows, q, scores, prefetch_bytes);
        row += 3;
        continue;
      }
    }
    if (left >= 2) {
      attend_rows<Kv, 2>(slabs, args, rows, q, scores, prefetch_bytes);
      row += 2;
    } else {
      attend_rows<Kv, 1>(slabs, args, rows, q, scores, prefetch_bytes);
      row += 1;
    }
  }
}

template <class Kv>
void attend_stored(const SplitArgs& args) {
  using Element = typename Kv::Element;
  const int head_dim = args.head_dim;
  const int padded_dim = padded_head_dim(head_dim);
  int first = kSplitKeys;
  int most = 0;
  for (int r = 0; r < args.num_rows; ++r) {
    first = args.rows[r].begin < first ? args.rows[r].begin : first;
    most = args.rows[r].end > most ? args.rows[r].end : most;
  }
  const int first_block = first / kLanes;
  const int blocks = (most + kLanes - 1) / kLanes;

  // K and V are widened by the tiles that load them: next to their multiply-adds that is free. Only
  // rows of V that are not whole vectors are copied first, padded with zeros.
  Slabs<Kv> slabs;
  slabs.v_stride = padded_dim;
  auto* padded =
      reinterpret_cast<Element*>(args.scratch + kMaxQueryTile * (kSplitKeys + padded_dim));
  for (int b = first_block; b < blocks; ++b) {
    slabs.k[b] = reinterpret_cast<const Element*>(args.k_slabs[b]);
    slabs.v[b] = reinterpret_cast<const Element*>(args.v_slabs[b]);
    if (head_dim != padded_dim) {
      const int keys = most - b * kLanes < kLanes ? most - b * kLanes : kLanes;
      Element* to = padded + b * kLanes * padded_dim;
      for (int key = 0; key < keys; ++key) {
        for (int d = 0; d < padded_dim; ++d)
          to[key * padded_dim + d] = d < head_dim ? slabs.v[b][key * head_dim + d] : Element{};
      }
      slabs.v[b] = to;
    }
  }
  for (int b = first_block; b < blocks && b < first_block + kKeyTile; ++b)
    prefetch_slab(slabs.k[b], args.prefetch_bytes);
  attend_split<Kv>(slabs, args);
}

void attention_split(const SplitArgs& args) {
  switch (args.element) {
    case KvElement::kBF16:
      return attend_stored<KvBF16>(args);
    case KvElement::kF16:
      return attend_stored<KvF16>(args);
    case KvElement::kF32:
      return attend_stored<KvF32>(args);
  }
}

void attention_merge(float* state, const float* partial, int head_dim) {
  const int padded_dim = padded_head_dim(head_dim);
  const float old_max = state[padded_dim];
  const float new_max = partial[padded_dim];
  const float top = old_max > new_max ? old_max : new_max;
  const F32 keep = exp_bounded(splat(old_max - top));
  const F32 take = exp_bounded(splat(new_max - top));
  for (int d = 0; d < padded_dim; d += kLanes)
    store(state + d, fma(load(partial + d), take, mul(load(state + d), keep)));
  float sums[kLanes];
  store(sums, fma(splat(partial[padded_dim + 1]), take, mul(splat(state[padded_dim + 1]), keep)));
  state[padded_dim] = top;
  state[padded_dim + 1] = sums[0];
}

void attention_finish(const float* state, int head_dim, float* out) {
  const F32 inverse = splat(1.0F / state[padded_head_dim(head_dim) + 1]);
  int d = 0;
  for (; d + kLanes <= head_dim; d += kLanes)
    store(out + d, mul(load(state + d), inverse));
  if (d < head_dim) store_first(out + d, mul(load(state + d), inverse), head_dim - d);
}
