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
    dot_sixbit<kCount>(w.q, a, low, high);
#pragma GCC unroll 4
    for (int t = 0; t < kCount; ++t) {
      const F32 scale = splat(a[t].scale);
      acc[t] = fma(to_float(low[t]), mul(w.scale_low, scale), acc[t]);
      acc[t] = fma(to_float(high[t]), mul(w.scale_high, scale), acc[t]);
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

/// Rows first .. first + kTokens - 1 of the tile times one panel.
template <class Format>
struct QuantizedPanel {
  static std::int64_t panel_bytes(std::int64_t cols) { return cols / kBlockCols * Format::kBytes; }

  template <int kTokens>
  static void run(const PanelArgs& args, const std::uint8_t* panel, int first, float* out,
                  int lanes) {
    constexpr int kFront = kTokens <= 4 ? kTokens : (kTokens + 1) / 2;
    constexpr int kBack = kTokens - kFront;
    const std::int64_t blocks = args.cols / kBlockCols;
    const ActBlock* a = static_cast<const ActBlock*>(args.x) + first;
    F32 acc[kTokens];
#pragma GCC unroll 8
    for (int t = 0; t < kTokens; ++t)
      acc[t] = zero();
    for (std::int64_t b = 0; b < blocks; ++b) {
      const typename Format::Block w = Format::load_block(panel);
      Format::template step<kFront>(w, a, acc);
      if constexpr (kBack > 0) Format::template step<kBack>(w, a + kFront, acc + kFront);
      panel += Format::kBytes;
      a += args.num_tokens;
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
  }
}
