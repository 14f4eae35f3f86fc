// 16 float lanes in an array, for processors without a unit of their own and as the statement of
// what the vector units compute. Included inside an anonymous namespace by one source file.

struct F32 {
  float v[16];
};
struct I32 {
  std::int32_t v[16];
};

constexpr int kRowTile = 2;
constexpr int kKeyTile = 2;
constexpr int kMaxTokenTile = 2;

template <typename Function>
inline F32 each_lane(Function function) {
  F32 out;
  for (int i = 0; i < 16; ++i)
    out.v[i] = function(i);
  return out;
}
inline std::uint32_t bits_of(float v) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &v, 4);
  return bits;
}
inline float float_of(std::uint32_t bits) {
  float v;
  __builtin_memcpy(&v, &bits, 4);
  return v;
}

inline void prefetch(const void* /*p*/) {}
inline F32 load(const float* p) {
  return each_lane([p](int i) { return p[i]; });
}
inline F32 load_bf16(const std::uint16_t* p) {
  return each_lane([p](int i) { return bf16_to_float(p[i]); });
}
inline F32 load_f16(const std::uint16_t* p) {
  return each_lane([p](int i) { return f16_to_float(p[i]); });
}
/// The first `count` lanes, 0 .. 16; the others are +0.
inline F32 load_first(const float* p, int count) {
  return each_lane([p, count](int i) { return i < count ? p[i] : 0.0F; });
}
inline void store(float* p, F32 v) {
  for (int i = 0; i < 16; ++i)
    p[i] = v.v[i];
}
inline void store_first(float* p, F32 v, int count) {
  for (int i = 0; i < count; ++i)
    p[i] = v.v[i];
}
/// Lanes from `count` on become `fill`.
inline F32 fill_after(F32 v, int count, float fill) {
  return each_lane([&](int i) { return i < count ? v.v[i] : fill; });
}
inline F32 splat(float v) {
  return each_lane([v](int) { return v; });
}
inline F32 zero() {
  return splat(0.0F);
}
inline F32 add(F32 a, F32 b) {
  return each_lane([&](int i) { return a.v[i] + b.v[i]; });
}
inline F32 sub(F32 a, F32 b) {
  return each_lane([&](int i) { return a.v[i] - b.v[i]; });
}
inline F32 mul(F32 a, F32 b) {
  return each_lane([&](int i) { return a.v[i] * b.v[i]; });
}
inline F32 div(F32 a, F32 b) {
  return each_lane([&](int i) { return a.v[i] / b.v[i]; });
}
inline F32 fma(F32 a, F32 b, F32 c) {
  return each_lane([&](int i) { return __builtin_fmaf(a.v[i], b.v[i], c.v[i]); });
}
/// a > b ? a : b, so that a NaN in a yields b.
inline F32 max(F32 a, F32 b) {
  return each_lane([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
/// a < b ? a : b.
inline F32 min(F32 a, F32 b) {
  return each_lane([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
/// v where !(x < bound) (NaN included), else +0.
inline F32 zero_below(F32 x, F32 bound, F32 v) {
  return each_lane([&](int i) { return x.v[i] < bound.v[i] ? 0.0F : v.v[i]; });
}
inline F32 bits_shifted_left_23(F32 v) {
  return each_lane([&](int i) { return float_of(bits_of(v.v[i]) << 23); });
}
inline F32 to_float(I32 v) {
  return each_lane([&](int i) { return static_cast<float>(v.v[i]); });
}

/// Lane i plus lane i + 8, then + 4, + 2, + 1.
inline float reduce_add(F32 v) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i)
      v.v[i] = v.v[i] + v.v[i + half];
  }
  return v.v[0];
}
/// The same tree with max.
inline float reduce_max(F32 v) {
  for (int half = 8; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i)
      v.v[i] = v.v[i] > v.v[i + half] ? v.v[i] : v.v[i + half];
  }
  return v.v[0];
}

/// Largest magnitude of 32 floats as bits (a NaN's are above infinity's).
inline std::uint32_t max_magnitude_bits(F32 a, F32 b) {
  std::uint32_t largest = 0;
  for (int i = 0; i < 16; ++i) {
    const std::uint32_t x = bits_of(a.v[i]) & 0x7fffffffu;
    const std::uint32_t y = bits_of(b.v[i]) & 0x7fffffffu;
    largest = largest > x ? largest : x;
    largest = largest > y ? largest : y;
  }
  return largest;
}
/// Low bytes of the lanes' bits to 16 int8; returns their sum.
inline std::int32_t store_low_bytes(std::int8_t* p, F32 v, std::int32_t bias) {
  std::int32_t sum = 0;
  for (int i = 0; i < 16; ++i) {
    const auto value = static_cast<std::int32_t>(bits_of(v.v[i])) - bias;
    p[i] = static_cast<std::int8_t>(value);
    sum += value;
  }
  return sum;
}

/// 32 columns of a panel: byte [g][row][i] is column 4g + i.
struct Quads {
  std::uint8_t v[8][16][4];
};
inline Quads load_nibbles(const std::uint8_t* p) {
  Quads quads;
  for (int g = 0; g < 4; ++g) {
    for (int r = 0; r < 16; ++r) {
      for (int i = 0; i < 4; ++i) {
        const std::uint8_t both = p[64 * g + 4 * r + i];
        quads.v[g][r][i] = both & 15;
        quads.v[g + 4][r][i] = both >> 4;
      }
    }
  }
  return quads;
}
inline Quads load_bytes(const std::uint8_t* p) {
  Quads quads;
  __builtin_memcpy(&quads, p, sizeof(quads));
  return quads;
}
/// Calls body(g, row, i, byte of Quads) for all of them.
template <typename Body>
inline void each_byte(Quads& quads, const Body& body) {
  for (int g = 0; g < 8; ++g) {
    for (int r = 0; r < 16; ++r) {
      for (int i = 0; i < 4; ++i)
        body(g, 4 * r + i, quads.v[g][r][i]);
    }
  }
}
/// Nibbles, then one high bit each: bit g of a byte belongs to columns 4g .. 4g + 3.
inline Quads load_fivebits(const std::uint8_t* p) {
  Quads quads = load_nibbles(p);
  each_byte(quads, [p](int g, int at, std::uint8_t& q) {
    q = static_cast<std::uint8_t>(q | (p[256 + at] >> g & 1) << 4);
  });
  return quads;
}
/// 0 .. 3: bits 2j of 64 bytes h are columns 16h + 4j .. + 3.
inline Quads load_pairs(const std::uint8_t* p) {
  Quads quads;
  each_byte(quads, [p](int g, int at, std::uint8_t& q) {
    q = static_cast<std::uint8_t>(p[64 * (g / 4) + at] >> 2 * (g % 4) & 3);
  });
  return quads;
}
/// 0 .. 7: pairs, then one high bit each.
inline Quads load_threebits(const std::uint8_t* p) {
  Quads quads = load_pairs(p);
  each_byte(quads, [p](int g, int at, std::uint8_t& q) {
    q = static_cast<std::uint8_t>(q | (p[128 + at] >> g & 1) << 2);
  });
  return quads;
}
/// Nibbles looked up in a table of 16 bytes.
inline Quads load_looked_up(const std::uint8_t* p, const std::uint8_t* table) {
  Quads quads = load_nibbles(p);
  each_byte(quads, [table](int, int, std::uint8_t& q) { q = table[q]; });
  return quads;
}
/// 16 bytes as floats.
inline F32 load_u8(const std::uint8_t* p) {
  F32 out;
  for (int i = 0; i < 16; ++i)
    out.v[i] = static_cast<float>(p[i]);
  return out;
}
inline F32 load_i8(const std::uint8_t* p) {
  F32 out;
  for (int i = 0; i < 16; ++i)
    out.v[i] = static_cast<float>(static_cast<std::int8_t>(p[i]));
  return out;
}
/// The low and the high nibbles of 16 bytes as floats.
inline F32 load_low_nibbles(const std::uint8_t* p) {
  F32 out;
  for (int i = 0; i < 16; ++i)
    out.v[i] = static_cast<float>(p[i] & 15);
  return out;
}
inline F32 load_high_nibbles(const std::uint8_t* p) {
  F32 out;
  for (int i = 0; i < 16; ++i)
    out.v[i] = static_cast<float>(p[i] >> 4);
  return out;
}
inline I32 dot(const Quads& w, const std::int8_t* a, int first, int count, std::int32_t start) {
  I32 sum;
  for (int r = 0; r < 16; ++r) {
    std::int32_t total = start;
    for (int g = first; g < first + count; ++g) {
      for (int i = 0; i < 4; ++i)
        total += w.v[g][r][i] * a[4 * g + i];
    }
    sum.v[r] = total;
  }
  return sum;
}
/// sums[t] = over 32 columns of w * a[t], w in 0 .. 15.
template <int kCount>
inline void dot_nibbles(const Quads& w, const ActBlock* a, I32* sums) {
  for (int t = 0; t < kCount; ++t)
    sums[t] = dot(w, a[t].q, 0, 8, 0);
}
/// The same, w in 0 .. 31.
template <int kCount>
inline void dot_fivebits(const Quads& w, const ActBlock* a, I32* sums) {
  dot_nibbles<kCount>(w, a, sums);
}
/// sums[t] = over 32 columns of (w - 128) * a[t].
template <int kCount>
inline void dot_bytes(const Quads& w, const ActBlock* a, I32* sums) {
  for (int t = 0; t < kCount; ++t)
    sums[t] = dot(w, a[t].q, 0, 8, -128 * (a[t].sum_low + a[t].sum_high));
}
/// low[t], high[t] = over the first and the last 16 columns of (w - kOffset) * a[t], w in 0 .. 63.
template <int kCount, int kOffset>
inline void dot_halves(const Quads& w, const ActBlock* a, I32* low, I32* high) {
  for (int t = 0; t < kCount; ++t) {
    low[t] = dot(w, a[t].q, 0, 4, -kOffset * a[t].sum_low);
    high[t] = dot(w, a[t].q, 4, 4, -kOffset * a[t].sum_high);
  }
}
