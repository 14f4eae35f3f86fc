// 16 float lanes in one zmm register. Included inside an anonymous namespace by one source file.

using F32 = __m512;
using I32 = __m512i;

constexpr int kRowTile = 6;  // attention: query rows held in registers
constexpr int kKeyTile = 4;  // attention: vectors of keys (or of head_dim) held in registers
constexpr int kMaxTokenTile = 8;

inline F32 load(const float* p) {
  return _mm512_loadu_ps(p);
}
/// Asks for the cache line of `p`, into the second level.
inline void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}
inline F32 load_bf16(const std::uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(
      _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
}
inline F32 load_f16(const std::uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __mmask16 lane_mask(int count) {
  return static_cast<__mmask16>((1u << count) - 1u);
}
/// The first `count` lanes, 0 .. 16; the others are +0.
inline F32 load_first(const float* p, int count) {
  return _mm512_maskz_loadu_ps(lane_mask(count), p);
}
inline void store(float* p, F32 v) {
  _mm512_storeu_ps(p, v);
}
inline void store_first(float* p, F32 v, int count) {
  _mm512_mask_storeu_ps(p, lane_mask(count), v);
}
/// Lanes from `count` on become `fill`.
inline F32 fill_after(F32 v, int count, float fill) {
  return _mm512_mask_mov_ps(_mm512_set1_ps(fill), lane_mask(count), v);
}
inline F32 splat(float v) {
  return _mm512_set1_ps(v);
}
inline F32 zero() {
  return _mm512_setzero_ps();
}
inline F32 add(F32 a, F32 b) {
  return _mm512_add_ps(a, b);
}
inline F32 sub(F32 a, F32 b) {
  return _mm512_sub_ps(a, b);
}
inline F32 mul(F32 a, F32 b) {
  return _mm512_mul_ps(a, b);
}
inline F32 div(F32 a, F32 b) {
  return _mm512_div_ps(a, b);
}
inline F32 fma(F32 a, F32 b, F32 c) {
  return _mm512_fmadd_ps(a, b, c);
}
/// a > b ? a : b, so that a NaN in a yields b.
inline F32 max(F32 a, F32 b) {
  return _mm512_max_ps(a, b);
}
/// a < b ? a : b.
inline F32 min(F32 a, F32 b) {
  return _mm512_min_ps(a, b);
}
/// v where !(x < bound) (NaN included), else +0.
inline F32 zero_below(F32 x, F32 bound, F32 v) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, bound, _CMP_NLT_UQ), v);
}
inline F32 bits_shifted_left_23(F32 v) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 23));
}
inline F32 to_float(I32 v) {
  return _mm512_cvtepi32_ps(v);
}

inline __m128 halves_added(__m512 v) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}
/// Lane i plus lane i + 8, then + 4, + 2, + 1.
inline float reduce_add(F32 v) {
  const __m128 four = halves_added(v);
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
/// The same tree with max.
inline float reduce_max(F32 v) {
  const __m256 half = _mm256_max_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/// Largest magnitude of 32 floats as bits (a NaN's are above infinity's).
inline std::uint32_t max_magnitude_bits(F32 a, F32 b) {
  const __m512i mask = _mm512_set1_epi32(0x7fffffff);
  return static_cast<std::uint32_t>(
      _mm512_reduce_max_epi32(_mm512_max_epi32(_mm512_and_si512(_mm512_castps_si512(a), mask),
                                               _mm512_and_si512(_mm512_castps_si512(b), mask))));
}
/// Low bytes of the lanes' bits to 16 int8; returns their sum.
inline std::int32_t store_low_bytes(std::int8_t* p, F32 v, std::int32_t bias) {
  const __m512i value = _mm512_sub_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(bias));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(value));
  return _mm512_reduce_add_epi32(value);
}

/// 32 columns of a panel: vector g holds columns 4g .. 4g+3 of 16 rows, four bytes a lane.
struct Quads {
  __m512i v[8];
};
inline Quads load_nibbles(const std::uint8_t* p) {
  const __m512i mask = _mm512_set1_epi8(15);
  Quads quads;
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
    const __m512i both = _mm512_loadu_si512(p + 64 * g);
    quads.v[g] = _mm512_and_si512(both, mask);
    quads.v[g + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
  }
  return quads;
}
inline Quads load_bytes(const std::uint8_t* p) {
  Quads quads;
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g)
    quads.v[g] = _mm512_loadu_si512(p + 64 * g);
  return quads;
}
// Bits above the nibble or pair lie in one more vector: bit g of a byte belongs to vector g.

/// (bits >> g & 1) << kTo beside w.
template <int kTo>
inline __m512i with_high_bit(__m512i w, __m512i bits, int g) {
  const __m512i moved = g < kTo ? _mm512_slli_epi16(bits, static_cast<unsigned>(kTo - g))
                                : _mm512_srli_epi16(bits, static_cast<unsigned>(g - kTo));
  constexpr int kOrWithAnd = 0xf8;  // a | (b & c)
  return _mm512_ternarylogic_epi32(w, moved, _mm512_set1_epi8(1 << kTo), kOrWithAnd);
}
/// 0 .. 31: nibbles, then one high bit each.
inline Quads load_fivebits(const std::uint8_t* p) {
  Quads quads = load_nibbles(p);
  const __m512i high = _mm512_loadu_si512(p + 256);
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g)
    quads.v[g] = with_high_bit<4>(quads.v[g], high, g);
  return quads;
}
/// 0 .. 3: bits 2j of byte vector h are vector 4h + j.
inline Quads load_pairs(const std::uint8_t* p) {
  const __m512i mask = _mm512_set1_epi8(3);
  Quads quads;
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    const __m512i four = _mm512_loadu_si512(p + 64 * (g / 4));
    quads.v[g] =
        _mm512_and_si512(_mm512_srli_epi16(four, static_cast<unsigned>(2 * (g % 4))), mask);
  }
  return quads;
}
/// 0 .. 7: pairs, then one high bit each.
inline Quads load_threebits(const std::uint8_t* p) {
  Quads quads = load_pairs(p);
  const __m512i high = _mm512_loadu_si512(p + 128);
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g)
    quads.v[g] = with_high_bit<2>(quads.v[g], high, g);
  return quads;
}
/// Nibbles looked up in a table of 16 bytes.
inline Quads load_looked_up(const std::uint8_t* p, const std::uint8_t* table) {
  const __m512i values =
      _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  Quads quads = load_nibbles(p);
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g)
    quads.v[g] = _mm512_shuffle_epi8(values, quads.v[g]);
  return quads;
}
inline __m128i load_128(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
/// 16 bytes as floats.
inline F32 load_u8(const std::uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(load_128(p)));
}
inline F32 load_i8(const std::uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load_128(p)));
}
/// The low and the high nibbles of 16 bytes as floats.
inline F32 load_low_nibbles(const std::uint8_t* p) {
  const __m512i wide = _mm512_cvtepu8_epi32(load_128(p));
  return _mm512_cvtepi32_ps(_mm512_and_si512(wide, _mm512_set1_epi32(15)));
}
inline F32 load_high_nibbles(const std::uint8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_srli_epi32(_mm512_cvtepu8_epi32(load_128(p)), 4));
}
inline __m512i splat_quad(const std::int8_t* a) {
  int word;
  __builtin_memcpy(&word, a, 4);
  return _mm512_set1_epi32(word);
}
// The dot products take kCount rows of x at once: their chains of dependent instructions
// interleave.

/// sums[t] = over 32 columns of w * a[t], w in 0 .. 255.
template <int kCount>
inline void dot_nibbles(const Quads& w, const ActBlock* a, I32* sums) {
#pragma GCC unroll 4
  for (int t = 0; t < kCount; ++t)
    sums[t] = _mm512_setzero_si512();
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t)
      sums[t] = _mm512_dpbusd_epi32(sums[t], w.v[g], splat_quad(a[t].q + 4 * g));
  }
}
template <int kCount>
inline void dot_fivebits(const Quads& w, const ActBlock* a, I32* sums) {
  dot_nibbles<kCount>(w, a, sums);
}
/// sums[t] = over 32 columns of (w - 128) * a[t].
template <int kCount>
inline void dot_bytes(const Quads& w, const ActBlock* a, I32* sums) {
#pragma GCC unroll 4
  for (int t = 0; t < kCount; ++t)
    sums[t] = _mm512_set1_epi32(-128 * (a[t].sum_low + a[t].sum_high));
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t)
      sums[t] = _mm512_dpbusd_epi32(sums[t], w.v[g], splat_quad(a[t].q + 4 * g));
  }
}
/// low[t], high[t] = over the first and the last 16 columns of (w - kOffset) * a[t], w in 0 .. 63.
template <int kCount, int kOffset>
inline void dot_halves(const Quads& w, const ActBlock* a, I32* low, I32* high) {
#pragma GCC unroll 4
  for (int t = 0; t < kCount; ++t) {
    low[t] = _mm512_set1_epi32(-kOffset * a[t].sum_low);
    high[t] = _mm512_set1_epi32(-kOffset * a[t].sum_high);
  }
#pragma GCC unroll 4
  for (int g = 0; g < 4; ++g) {
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) {
      low[t] = _mm512_dpbusd_epi32(low[t], w.v[g], splat_quad(a[t].q + 4 * g));
      high[t] = _mm512_dpbusd_epi32(high[t], w.v[g + 4], splat_quad(a[t].q + 16 + 4 * g));
    }
  }
}
