// Products of packed weight panels with a tile of rows. Included inside an anonymous namespace
// after one of the simd_*.h headers. A lane is one output; it adds its blocks (or columns) in
// order, so neither the number of rows nor the way they are tiled changes a bit.

struct Q4Scale16 {
  static constexpr int kBytes = 320;
  struct Block {
    F32 scale, minimum;
    Quads q;
  };
  static inline Block load_block(const std::uint8_t* p) {
    const auto* scales = reinterpret_cast<const std::uint16_t*>(p);
    return {load_f16(scales), load_f16(scales + 16), load_nibbles(p + 64)};
  }
  /// One block of kCount rows of x, added to their sums.
  template <int kCount>
  static inline void step(const Block& w, const ActBlock* a, F32* acc) {
    I32 sums[kCount];
    dot_nibbles<kCount>(w.q, a, sums);
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) {
      acc[t] = fma(to_float(sums[t]), mul(w.scale, splat(a[t].scale)), acc[t]);
      acc[t] = fma(w.minimum, splat(a[t].scaled_sum), acc[t]);
    }
  }
};

struct Q4Scale32 {
  static constexpr int kBytes = 384;
  using Block = Q4Scale16::Block;
  static inline Block load_block(const std::uint8_t* p) {
    const auto* scales = reinterpret_cast<const float*>(p);
    return {load(scales), load(scales + 16), load_nibbles(p + 128)};
  }
  template <int kCount>
  static inline void step(const Block& w, const ActBlock* a, F32* acc) {
    Q4Scale16::step<kCount>(w, a, acc);
  }
};

struct Q8Scale16 {
  static constexpr int kBytes = 544;
  struct Block {
    F32 scale;
    Quads q;
  };
  static inline Block load_block(const std::uint8_t* p) {
    return {load_f16(reinterpret_cast<const std::uint16_t*>(p)), load_bytes(p + 32)};
  }
  template <int kCount>
  static inline void step(const Block& w, const ActBlock* a, F32* acc) {
    I32 sums[kCount];
    dot_bytes<kCount>(w.q, a, sums);
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t)
      acc[t] = fma(to_float(sums[t]), mul(w.scale, splat(a[t].scale)), acc[t]);
  }
};

struct Q6Scale32 {
  static constexpr int kBytes = 640;
  struct Block {
    F32 scale_low, scale_high;
    Quads q;
  };
  static inline Block load_block(const std::uint8_t* p) {
    const auto* scales = reinterpret_cast<const float*>(p);
    return {load(scales), load(scales + 16), load_bytes(p + 128)};
  }
  template <int kCount>
  static inline void step(const Block& w, const ActBlock* a, F32* acc) {
    I32 low[kCount];
    I32 high[kCount];
    dot_halves<kCount, 32>(w.q, a, low, high);
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) {
      const F32 scale = splat(a[t].scale);
      acc[t] = fma(to_float(low[t]), mul(w.scale_low, scale), acc[t]);
      acc[t] = fma(to_float(high[t]), mul(w.scale_high, scale), acc[t]);
    }
  }
};

struct Q5Scale16 {
  static constexpr int kBytes = 384;
  using Block = Q4Scale16::Block;
  static inline Block load_block(const std::uint8_t* p) {
    const auto* scales = reinterpret_cast<const std::uint16_t*>(p);
    return {load_f16(scales), load_f16(scales + 16), load_fivebits(p + 64)};
  }
  template <int kCount>
  static inline void step(const Block& w, const ActBlock* a, F32* acc) {
    I32 sums[kCount];
    dot_fivebits<kCount>(w.q, a, sums);
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) {
      acc[t] = fma(to_float(sums[t]), mul(w.scale, splat(a[t].scale)), acc[t]);
      acc[t] = fma(w.minimum, splat(a[t].scaled_sum), acc[t]);
    }
  }
};

/// The values of IQ4_NL plus 128.
constexpr std::uint8_t kIq4Bytes[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                        129, 141, 153, 166, 181, 197, 217, 241};

struct Iq4 {
  static constexpr int kBytes = 288;
  using Block = Q8Scale16::Block;
  static inline Block load_block(const std::uint8_t* p) {
    return {load_f16(reinterpret_cast<const std::uint16_t*>(p)), load_looked_up(p + 32, kIq4Bytes)};
  }
  template <int kCount>
  static inline void step(const Block& w, const ActBlock* a, F32* acc) {
    Q8Scale16::step<kCount>(w, a, acc);
  }
};

// Units of 256 columns with the two levels of scales that their formats store: a float for the
// unit, a small integer for 16 or 32 columns. `j` is the block of 32 columns inside.

inline F32 negative(F32 v) {
  return mul(splat(-1.0F), v);
}

/// f16 d and dmin; for each block 16 scales, 16 minima; then the quants of the blocks.
struct Q5Super {
  static constexpr int kBytes = 2880;
  using Block = Q4Scale16::Block;
  static inline Block load_block(const std::uint8_t* p, int j) {
    const auto* d = reinterpret_cast<const std::uint16_t*>(p);
    const std::uint8_t* small = p + 64 + 32 * j;
    return {mul(load_f16(d), load_u8(small)), negative(mul(load_f16(d + 16), load_u8(small + 16))),
            load_fivebits(p + 320 + 320 * j)};
  }
  template <int kCount>
  static inline void step(const Block& w, const ActBlock* a, F32* acc) {
    Q5Scale16::step<kCount>(w, a, acc);
  }
};

/// f16 d and dmin; for each half block a scale and a minimum in one byte; then the quants.
struct Q2Super {
  static constexpr int kBytes = 1344;
  struct Block {
    F32 d, dmin;
    F32 scale_low, scale_high, minimum_low, minimum_high;
    Quads q;
  };
  static inline Block load_block(const std::uint8_t* p, int j) {
    const auto* d = reinterpret_cast<const std::uint16_t*>(p);
    const std::uint8_t* small = p + 64 + 32 * j;
    return {load_f16(d),
            negative(load_f16(d + 16)),
            load_low_nibbles(small),
            load_low_nibbles(small + 16),
            load_high_nibbles(small),
            load_high_nibbles(small + 16),
            load_pairs(p + 320 + 128 * j)};
  }
  /// Sums over both halves are integers below 2^24: exact in float, in whichever order.
  template <int kCount>
  static inline void step(const Block& w, const ActBlock* a, F32* acc) {
    I32 low[kCount];
    I32 high[kCount];
    dot_halves<kCount, 0>(w.q, a, low, high);
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) {
      const F32 scale = splat(a[t].scale);
      const F32 sum = fma(to_float(high[t]), w.scale_high, mul(to_float(low[t]), w.scale_low));
      const F32 shift = fma(splat(static_cast<float>(a[t].sum_high)), w.minimum_high,
                            mul(splat(static_cast<float>(a[t].sum_low)), w.minimum_low));
      acc[t] = fma(sum, mul(w.d, scale), acc[t]);
      acc[t] = fma(shift, mul(w.dmin, scale), acc[t]);
    }
  }
};

/// Signed scales of the half blocks, the quants of the blocks, f16 d.
struct Q3Super {
  static constexpr int kBytes = 1824;
  struct Block {
    F32 d, scale_low, scale_high;
    Quads q;
  };
  static inline Block load_block(const std::uint8_t* p, int j) {
    return {load_f16(reinterpret_cast<const std::uint16_t*>(p + 1792)), load_i8(p + 32 * j),
            load_i8(p + 32 * j + 16), load_threebits(p + 256 + 192 * j)};
  }
  template <int kCount>
  static inline void step(const Block& w, const ActBlock* a, F32* acc) {
    I32 low[kCount];
    I32 high[kCount];
    dot_halves<kCount, 4>(w.q, a, low, high);
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) {
      const F32 sum = fma(to_float(high[t]), w.scale_high, mul(to_float(low[t]), w.scale_low));
      acc[t] = fma(sum, mul(w.d, splat(a[t].scale)), acc[t]);
    }
  }
};

/// Columns k of 16 rows are 16 consecutive elements.
struct WideF32 {
  using Element = float;
  static inline F32 load_column(const float* p) { return load(p); }
};
struct WideF16 {
  using Element = std::uint16_t;
  static inline F32 load_column(const std::uint16_t* p) { return load_f16(p); }
};
struct WideBF16 {
  using Element = std::uint16_t;
  static inline F32 load_column(const std::uint16_t* p) { return load_bf16(p); }
};

template <int kTokens>
inline void store_outputs(const F32 (&acc)[kTokens], float* out, std::int64_t out_stride,
                          int lanes) {
#pragma GCC unroll 8
  for (int t = 0; t < kTokens; ++t) {
    if (lanes == 16) {
      store(out + t * out_stride, acc[t]);
    } else {
      store_first(out + t * out_stride, acc[t], lanes);
    }
  }
}

/// One block times kTokens rows of x.
template <class Format, int kTokens>
inline void add_block(const typename Format::Block& w, const ActBlock* a, F32* acc) {
  constexpr int kFront = kTokens <= 4 ? kTokens : (kTokens + 1) / 2;
  constexpr int kBack = kTokens - kFront;
  Format::template step<kFront>(w, a, acc);
  if constexpr (kBack > 0) Format::template step<kBack>(w, a + kFront, acc + kFront);
}

/// Rows first .. first + kTokens - 1 of the tile times one panel.
template <class Format>
struct QuantizedPanel {
  static std::int64_t panel_bytes(std::int64_t cols) { return cols / kBlockCols * Format::kBytes; }

  template <int kTokens>
  static void run(const PanelArgs& args, const std::uint8_t* panel, int first, float* out,
                  int lanes) {
    const std::int64_t blocks = args.cols / kBlockCols;
    const ActBlock* a = static_cast<const ActBlock*>(args.x) + first;
    F32 acc[kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t)
      acc[t] = zero();
    for (std::int64_t b = 0; b < blocks; ++b) {
      add_block<Format, kTokens>(Format::load_block(panel), a, acc);
      panel += Format::kBytes;
      a += args.num_tokens;
    }
    store_outputs(acc, out, args.out_stride, lanes);
  }
};

/// The same for units of 256 columns.
template <class Format>
struct SuperPanel {
  static std::int64_t panel_bytes(std::int64_t cols) { return cols / kSuperCols * Format::kBytes; }

  template <int kTokens>
  static void run(const PanelArgs& args, const std::uint8_t* panel, int first, float* out,
                  int lanes) {
    const std::int64_t units = args.cols / kSuperCols;
    const ActBlock* a = static_cast<const ActBlock*>(args.x) + first;
    F32 acc[kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t)
      acc[t] = zero();
    for (std::int64_t unit = 0; unit < units; ++unit, panel += Format::kBytes) {
      for (int j = 0; j < kSuperCols / kBlockCols; ++j, a += args.num_tokens)
        add_block<Format, kTokens>(Format::load_block(panel, j), a, acc);
    }
    store_outputs(acc, out, args.out_stride, lanes);
  }
};

template <class Format>
struct FloatPanel {
  static std::int64_t panel_bytes(std::int64_t cols) {
    return cols * kLanes * static_cast<std::int64_t>(sizeof(typename Format::Element));
  }

  template <int kTokens>
  static void run(const PanelArgs& args, const std::uint8_t* panel, int first, float* out,
                  int lanes) {
    const auto* column = reinterpret_cast<const typename Format::Element*>(panel);
    const float* x = static_cast<const float*>(args.x) + first;
    F32 acc[kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t)
      acc[t] = zero();
    for (std::int64_t k = 0; k < args.cols; ++k) {
      const F32 w = Format::load_column(column);
#pragma GCC unroll 8
      for (int t = 0; t < kTokens; ++t)
        acc[t] = fma(w, splat(x[t]), acc[t]);
      column += kLanes;
      x += args.num_tokens;
    }
    store_outputs(acc, out, args.out_stride, lanes);
  }
};

/// As many rows as registers hold, at most `left`; returns how many.
template <class Panel>
int run_rows(const PanelArgs& args, const std::uint8_t* panel, int first, float* out, int lanes,
             int left) {
  const int count = left < kMaxTokenTile ? left : kMaxTokenTile;
  const auto run = [&]<int kTokens>() {
    if constexpr (kTokens <= kMaxTokenTile)
      Panel::template run<kTokens>(args, panel, first, out, lanes);
  };
  switch (count) {
    case 1:
      run.template operator()<1>();
      break;
    case 2:
      run.template operator()<2>();
      break;
    case 3:
      run.template operator()<3>();
      break;
    case 4:
      run.template operator()<4>();
      break;
    case 5:
      run.template operator()<5>();
      break;
    case 6:
      run.template operator()<6>();
      break;
    case 7:
      run.template operator()<7>();
      break;
    default:
      run.template operator()<8>();
      break;
  }
  return count;
}

template <class Panel>
void run_panels(const PanelArgs& args) {
  const std::int64_t bytes = Panel::panel_bytes(args.cols);
  const auto* panel = reinterpret_cast<const std::uint8_t*>(args.data) + args.panel_begin * bytes;
  for (std::int64_t p = args.panel_begin; p < args.panel_end; ++p, panel += bytes) {
    const std::int64_t left = args.rows - p * kLanes;
    const int lanes = left < kLanes ? static_cast<int>(left) : kLanes;
    for (int first = 0; first < args.num_tokens;) {
      float* out = args.out + first * args.out_stride + p * kLanes;
      first += run_rows<Panel>(args, panel, first, out, lanes, args.num_tokens - first);
    }
  }
}

void linear_panels(const PanelArgs& args) {
  switch (args.kind) {
    case PanelKind::kF32:
      return run_panels<FloatPanel<WideF32>>(args);
    case PanelKind::kF16:
      return run_panels<FloatPanel<WideF16>>(args);
    case PanelKind::kBF16:
      return run_panels<FloatPanel<WideBF16>>(args);
    case PanelKind::kQ4Scale16:
      return run_panels<QuantizedPanel<Q4Scale16>>(args);
    case PanelKind::kQ4Scale32:
      return run_panels<QuantizedPanel<Q4Scale32>>(args);
    case PanelKind::kQ8:
      return run_panels<QuantizedPanel<Q8Scale16>>(args);
    case PanelKind::kQ6:
      return run_panels<QuantizedPanel<Q6Scale32>>(args);
    case PanelKind::kQ5Scale16:
      return run_panels<QuantizedPanel<Q5Scale16>>(args);
    case PanelKind::kQ5Super:
      return run_panels<SuperPanel<Q5Super>>(args);
    case PanelKind::kQ2Super:
      return run_panels<SuperPanel<Q2Super>>(args);
    case PanelKind::kQ3Super:
      return run_panels<SuperPanel<Q3Super>>(args);
    case PanelKind::kIq4:
      return run_panels<QuantizedPanel<Iq4>>(args);
  }
}
