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
// Bits above the nibble or pair lie in 64 bytes more: bit g of a byte belongs to pair g.

/// (bits >> g & 1) << kTo beside w.
template <int kTo>
inline __m256i with_high_bit(__m256i w, __m256i bits, int g) {
  const __m256i moved =
      g < kTo ? _mm256_slli_epi16(bits, kTo - g) : _mm256_srli_epi16(bits, g - kTo);
  return _mm256_or_si256(w, _mm256_and_si256(moved, _mm256_set1_epi8(1 << kTo)));
}
template <int kTo>
inline void add_high_bits(Quads& quads, const std::uint8_t* p) {
  const __m256i lo = load_256(p);
  const __m256i hi = load_256(p + 32);
#pragma GCC unroll 8
  for (int g = 0; g < 8; ++g) {
    quads.v[2 * g] = with_high_bit<kTo>(quads.v[2 * g], lo, g);
    quads.v[2 * g + 1] = with_high_bit<kTo>(quads.v[2 * g + 1], hi, g);
  }
}
/// 0 .. 31: nibbles, then one high bit each.
inline Quads load_fivebits(const std::uint8_t* p) {
  Quads quads = load_nibbles(p);
  add_high_bits<4>(quads, p + 256);
  return quads;
}
/// 0 .. 3: bits 2j of 64 bytes h are pair 4h + j.
inline Quads load_pairs(const std::uint8_t* p) {
  const __m256i mask = _mm256_set1_epi8(3);
  Quads quads;
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    const __m256i four = load_256(p + 64 * (i / 8) + 32 * (i % 2));
    quads.v[i] = _mm256_and_si256(_mm256_srli_epi16(four, 2 * (i / 2 % 4)), mask);
  }
  return quads;
}
/// 0 .. 7: pairs, then one high bit each.
inline Quads load_threebits(const std::uint8_t* p) {
  Quads quads = load_pairs(p);
  add_high_bits<2>(quads, p + 128);
  return quads;
}
/// Nibbles looked up in a table of 16 bytes.
inline Quads load_looked_up(const std::uint8_t* p, const std::uint8_t* table) {
  const __m256i values = _mm256_broadcastsi128_si256(load_128(table));
  Quads quads = load_nibbles(p);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    quads.v[i] = _mm256_shuffle_epi8(values, quads.v[i]);
  return quads;
}
/// 16 bytes, shifted and masked as given, as floats.
inline F32 widen_bytes(__m128i bytes, int shift, int mask) {
  const __m256i keep = _mm256_set1_epi32(mask);
  const __m256i lo = _mm256_srli_epi32(_mm256_cvtepu8_epi32(bytes), shift);
  const __m256i hi = _mm256_srli_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)), shift);
  return {_mm256_cvtepi32_ps(_mm256_and_si256(lo, keep)),
          _mm256_cvtepi32_ps(_mm256_and_si256(hi, keep))};
}
/// 16 bytes as floats.
inline F32 load_u8(const std::uint8_t* p) {
  return widen_bytes(load_128(p), 0, 255);
}
inline F32 load_i8(const std::uint8_t* p) {
  const __m128i bytes = load_128(p);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
/// The low and the high nibbles of 16 bytes as floats.
inline F32 load_low_nibbles(const std::uint8_t* p) {
  return widen_bytes(load_128(p), 0, 15);
}
inline F32 load_high_nibbles(const std::uint8_t* p) {
  return widen_bytes(load_128(p), 4, 15);
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
/// sums[t] = over 32 columns of w * a[t], w in 0 .. 31. 16-bit sums hold four steps: 4 * 2 * 31 *
/// 127 = 31496.
template <int kCount>
inline void dot_fivebits(const Quads& w, const ActBlock* a, I32* sums) {
  for (int t = 0; t < kCount; ++t) {
    I32 sum = {_mm256_setzero_si256(), _mm256_setzero_si256()};
#pragma GCC unroll 2
    for (int first = 0; first < 8; first += 4) {
      __m256i lo = _mm256_setzero_si256();
      __m256i hi = _mm256_setzero_si256();
#pragma GCC unroll 4
      for (int g = first; g < first + 4; ++g) {
        const __m256i quad = splat_quad(a[t].q + 4 * g);
        lo = _mm256_add_epi16(lo, _mm256_maddubs_epi16(w.v[2 * g], quad));
        hi = _mm256_add_epi16(hi, _mm256_maddubs_epi16(w.v[2 * g + 1], quad));
      }
      sum.lo = _mm256_add_epi32(sum.lo, widen_pairs(lo));
      sum.hi = _mm256_add_epi32(sum.hi, widen_pairs(hi));
    }
    sums[t] = sum;
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
/// start plus, over columns 16 * half .. + 15, w * a, w in 0 .. 63.
inline I32 dot_half(const Quads& w, const std::int8_t* a, int half, std::int32_t start_value) {
  const __m256i start = _mm256_set1_epi32(start_value);
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
/// low[t], high[t] = over the first and the last 16 columns of (w - kOffset) * a[t].
template <int kCount, int kOffset>
inline void dot_halves(const Quads& w, const ActBlock* a, I32* low, I32* high) {
  for (int t = 0; t < kCount; ++t) {
    low[t] = dot_half(w, a[t].q, 0, -kOffset * a[t].sum_low);
    high[t] = dot_half(w, a[t].q, 1, -kOffset * a[t].sum_high);
  }
}
