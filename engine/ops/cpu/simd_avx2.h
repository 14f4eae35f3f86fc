// 16 float lanes in two ymm registers. Included inside an anonymous namespace by one source file.

struct F32 {
  __m256 lo, hi;
};
struct I32 {
  __m256i lo, hi;
};

constexpr int kRowTile = 3;
constexpr int kKeyTile = 2;
constexpr int kMaxTokenTile = 4;

inline F32 load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
/// Asks for the cache line of `p`, into the second level.
inline void prefetch(const void* p) {
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T1);
}
inline __m128i load_128(const void* p) {
  return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
inline __m256i load_256(const void* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}
inline __m256 widen_bf16(const std::uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(p)), 16));
}
inline F32 load_bf16(const std::uint16_t* p) {
  return {widen_bf16(p), widen_bf16(p + 8)};
}
inline F32 load_f16(const std::uint16_t* p) {
  return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))};
}
struct LaneMask {
  __m256i lo, hi;
};
inline LaneMask lane_mask(int count) {
  const __m256i n = _mm256_set1_epi32(count);
  return {_mm256_cmpgt_epi32(n, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
          _mm256_cmpgt_epi32(n, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
}
/// The first `count` lanes, 0 .. 16; the others are +0.
inline F32 load_first(const float* p, int count) {
  const LaneMask mask = lane_mask(count);
  return {_mm256_maskload_ps(p, mask.lo), _mm256_maskload_ps(p + 8, mask.hi)};
}
inline void store(float* p, F32 v) {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}
inline void store_first(float* p, F32 v, int count) {
  const LaneMask mask = lane_mask(count);
  _mm256_maskstore_ps(p, mask.lo, v.lo);
  _mm256_maskstore_ps(p + 8, mask.hi, v.hi);
}
/// Lanes from `count` on become `fill`.
inline F32 fill_after(F32 v, int count, float fill) {
  const LaneMask mask = lane_mask(count);
  const __m256 other = _mm256_set1_ps(fill);
  return {_mm256_blendv_ps(other, v.lo, _mm256_castsi256_ps(mask.lo)),
          _mm256_blendv_ps(other, v.hi, _mm256_castsi256_ps(mask.hi))};
}
inline F32 splat(float v) {
  return {_mm256_set1_ps(v), _mm256_set1_ps(v)};
}
inline F32 zero() {
  return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
inline F32 add(F32 a, F32 b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline F32 sub(F32 a, F32 b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline F32 mul(F32 a, F32 b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline F32 div(F32 a, F32 b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline F32 fma(F32 a, F32 b, F32 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
/// a > b ? a : b, so that a NaN in a yields b.
inline F32 max(F32 a, F32 b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
/// a < b ? a : b.
inline F32 min(F32 a, F32 b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
/// v where !(x < bound) (NaN included), else +0.
inline F32 zero_below(F32 x, F32 bound, F32 v) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.lo, bound.lo, _CMP_NLT_UQ), v.lo),
          _mm256_and_ps(_mm256_cmp_ps(x.hi, bound.hi, _CMP_NLT_UQ), v.hi)};
}
inline F32 bits_shifted_left_23(F32 v) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v.lo), 23)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v.hi), 23))};
}
inline F32 to_float(I32 v) {
  return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)};
}

/// Lane i plus lane i + 8, then + 4, + 2, + 1.
inline float reduce_add(F32 v) {
  const __m256 half = _mm256_add_ps(v.lo, v.hi);
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
/// The same tree with max.
inline float reduce_max(F32 v) {
  const __m256 half = _mm256_max_ps(v.lo, v.hi);
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

/// Largest magnitude of 32 floats as bits (a NaN's are above infinity's).
inline std::uint32_t max_magnitude_bits(F32 a, F32 b) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  const __m256i x = _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(a.lo), mask),
                                     _mm256_and_si256(_mm256_castps_si256(a.hi), mask));
  const __m256i y = _mm256_max_epi32(_mm256_and_si256(_mm256_castps_si256(b.lo), mask),
                                     _mm256_and_si256(_mm256_castps_si256(b.hi), mask));
  const __m256i z = _mm256_max_epi32(x, y);
  __m128i m = _mm_max_epi32(_mm256_castsi256_si128(z), _mm256_extracti128_si256(z, 1));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
  m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
  return static_cast<std::uint32_t>(_mm_cvtsi128_si32(m));
}
/// Low bytes of the lanes' bits to 16 int8; returns their sum.
inline std::int32_t store_low_bytes(std::int8_t* p, F32 v, std::int32_t bias) {
  const __m256i base = _mm256_set1_epi32(bias);
  const __m256i lo = _mm256_sub_epi32(_mm256_castps_si256(v.lo), base);
  const __m256i hi = _mm256_sub_epi32(_mm256_castps_si256(v.hi), base);
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(lo, hi), 0xd8);
  const __m128i bytes =
      _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
  const __m256i sum8 = _mm256_add_epi32(lo, hi);
  __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sum8), _mm256_extracti128_si256(sum8, 1));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
  sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
  return _mm_cvtsi128_si32(sum);
}

/// 32 columns of a panel: pair g holds columns 4g .. 4g+3 of 16 rows, four bytes a lane.
struct Quads {
  __m256i v[16];
};
inline Quads load_nibbles(const std::uint8_t* p) {
  const __m256i mask = _mm256_set1_epi8(15);
  Quads quads;
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    const __m256i both = load_256(p + 32 * g);
    quads.v[g] = _mm256_and_si256(both, mask);
    quads.v[g + 8] = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
  }
  return quads;
}
inline Quads load_bytes(const std::uint8_t* p) {
  Quads quads;
#pragma GCC unroll 16
  for (int g = 0; g < 16; ++g)
    quads.v[g] = load_256(p + 32 * g);
  return quads;
}
inline __m256i splat_quad(const std::int8_t* a) {
  int word;
  __builtin_memcpy(&word, a, 4);
  return _mm256_set1_epi32(word);
}
inline __m256i widen_pairs(__m256i sums16) {
  return _mm256_madd_epi16(sums16, _mm256_set1_epi16(1));
}
/// sums[t] = over 32 columns of w * a[t], w in 0 .. 15. 16-bit sums hold all eight steps: 8 * 2 *
/// 15
/// * 127 = 30480.
template <int kCount>
inline void dot_nibbles(const Quads& w, const ActBlock* a, I32* sums) {
  for (int t = 0; t < kCount; ++t) {
    __m256i lo = _mm256_setzero_si256();
    __m256i hi = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      const __m256i quad = splat_quad(a[t].q + 4 * g);
      lo = _mm256_add_epi16(lo, _mm256_maddubs_epi16(w.v[2 * g], quad));
      hi = _mm256_add_epi16(hi, _mm256_maddubs_epi16(w.v[2 * g + 1], quad));
    }
    sums[t] = {widen_pairs(lo), widen_pairs(hi)};
  }
}
/// (w - 128) * a with |w - 128| as the unsigned factor: 2 * 128 * 127 = 32512 fits 16 bits.
inline __m256i dot_signed(__m256i stored, __m256i quad) {
  const __m256i w = _mm256_xor_si256(stored, _mm256_set1_epi8(-128));
  return widen_pairs(_mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(quad, w)));
}
/// sums[t] = over 32 columns of (w - 128) * a[t].
template <int kCount>
inline void dot_bytes(const Quads& w, const ActBlock* a, I32* sums) {
  for (int t = 0; t < kCount; ++t) {
    I32 sum = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#pragma GCC unroll 8
    for (int g = 0; g < 8; ++g) {
      const __m256i quad = splat_quad(a[t].q + 4 * g);
      sum.lo = _mm256_add_epi32(sum.lo, dot_signed(w.v[2 * g], quad));
      sum.hi = _mm256_add_epi32(sum.hi, dot_signed(w.v[2 * g + 1], quad));
    }
    sums[t] = sum;
  }
}
/// Two steps of 2 * 63 * 127 fit 16 bits.
inline __m256i dot_two_sixbit(__m256i w0, __m256i a0, __m256i w1, __m256i a1) {
  return widen_pairs(_mm256_add_epi16(_mm256_maddubs_epi16(w0, a0), _mm256_maddubs_epi16(w1, a1)));
}
/// Over columns 16 * half .. + 15 of (w - 32) * a, w in 0 .. 63; sum_a of those a.
inline I32 dot16_sixbit(const Quads& w, const std::int8_t* a, int half, std::int32_t sum_a) {
  const __m256i start = _mm256_set1_epi32(-32 * sum_a);
  I32 sum = {start, start};
#pragma GCC unroll 2
  for (int g = 4 * half; g < 4 * half + 4; g += 2) {
    const __m256i first = splat_quad(a + 4 * g);
    const __m256i second = splat_quad(a + 4 * g + 4);
    sum.lo = _mm256_add_epi32(sum.lo, dot_two_sixbit(w.v[2 * g], first, w.v[2 * g + 2], second));
    sum.hi =
        _mm256_add_epi32(sum.hi, dot_two_sixbit(w.v[2 * g + 1], first, w.v[2 * g + 3], second));
  }
  return sum;
}
/// low[t], high[t] = over the first and the last 16 columns of (w - 32) * a[t].
template <int kCount>
inline void dot_sixbit(const Quads& w, const ActBlock* a, I32* low, I32* high) {
  for (int t = 0; t < kCount; ++t) {
    low[t] = dot16_sixbit(w, a[t].q, 0, a[t].sum_low);
    high[t] = dot16_sixbit(w, a[t].q, 1, a[t].sum_high);
  }
}
