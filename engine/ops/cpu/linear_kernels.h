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
  static inline F32 step(const Block& w, const ActBlock& a, F32 acc) {
    const I32 sum = dot32_nibbles(w.q, a.q);
    acc = fma(to_float(sum), mul(w.scale, splat(a.scale)), acc);
    return fma(w.minimum, splat(a.scaled_sum), acc);
  }
};

struct Q4Scale32 {
  static constexpr int kBytes = 384;
  using Block = Q4Scale16::Block;
  static inline Block load_block(const std::uint8_t* p) {
    const auto* scales = reinterpret_cast<const float*>(p);
    return {load(scales), load(scales + 16), load_nibbles(p + 128)};
  }
  static inline F32 step(const Block& w, const ActBlock& a, F32 acc) {
    return Q4Scale16::step(w, a, acc);
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
  static inline F32 step(const Block& w, const ActBlock& a, F32 acc) {
    const I32 sum = dot32_bytes(w.q, a.q, a.sum_low + a.sum_high);
    return fma(to_float(sum), mul(w.scale, splat(a.scale)), acc);
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
  static inline F32 step(const Block& w, const ActBlock& a, F32 acc) {
    const F32 scale = splat(a.scale);
    acc = fma(to_float(dot16_sixbit<0>(w.q, a.q, a.sum_low)), mul(w.scale_low, scale), acc);
    return fma(to_float(dot16_sixbit<1>(w.q, a.q, a.sum_high)), mul(w.scale_high, scale), acc);
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
#pragma GCC unroll 16
  for (int t = 0; t < kTokens; ++t) {
    if (lanes == 16) {
      store(out + t * out_stride, acc[t]);
    } else {
      store_first(out + t * out_stride, acc[t], lanes);
    }
  }
}

/// Tokens first .. first + kTokens - 1 of the tile, all panels asked for.
template <class Format, int kTokens>
void quantized_columns(const PanelArgs& args, int first) {
  const std::int64_t blocks = args.cols / kBlockCols;
  const auto* panel =
      reinterpret_cast<const std::uint8_t*>(args.data) + args.panel_begin * blocks * Format::kBytes;
  for (std::int64_t p = args.panel_begin; p < args.panel_end; ++p) {
    const ActBlock* a = static_cast<const ActBlock*>(args.x) + first;
    F32 acc[kTokens];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
      acc[t] = zero();
    for (std::int64_t b = 0; b < blocks; ++b) {
      const typename Format::Block w = Format::load_block(panel);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t)
        acc[t] = Format::step(w, a[t], acc[t]);
      panel += Format::kBytes;
      a += args.num_tokens;
    }
    const std::int64_t left = args.rows - p * kLanes;
    store_outputs(acc, args.out + first * args.out_stride + p * kLanes, args.out_stride,
                  left < kLanes ? static_cast<int>(left) : kLanes);
  }
}

template <class Format, int kTokens>
void float_columns(const PanelArgs& args, int first) {
  const auto* column = reinterpret_cast<const typename Format::Element*>(args.data) +
                       args.panel_begin * args.cols * kLanes;
  for (std::int64_t p = args.panel_begin; p < args.panel_end; ++p) {
    const float* x = static_cast<const float*>(args.x) + first;
    F32 acc[kTokens];
#pragma GCC unroll 16
    for (int t = 0; t < kTokens; ++t)
      acc[t] = zero();
    for (std::int64_t k = 0; k < args.cols; ++k) {
      const F32 w = Format::load_column(column);
#pragma GCC unroll 16
      for (int t = 0; t < kTokens; ++t)
        acc[t] = fma(w, splat(x[t]), acc[t]);
      column += kLanes;
      x += args.num_tokens;
    }
    const std::int64_t left = args.rows - p * kLanes;
    store_outputs(acc, args.out + first * args.out_stride + p * kLanes, args.out_stride,
                  left < kLanes ? static_cast<int>(left) : kLanes);
  }
}

template <class Format>
struct QuantizedPanels {
  template <int kTokens>
  static void run(const PanelArgs& args, int first) {
    quantized_columns<Format, kTokens>(args, first);
  }
};
template <class Format>
struct FloatPanels {
  template <int kTokens>
  static void run(const PanelArgs& args, int first) {
    float_columns<Format, kTokens>(args, first);
  }
};

template <class Panels>
void run_tile(const PanelArgs& args) {
  int first = 0;
  while (first < args.num_tokens) {
    const int left = args.num_tokens - first;
    if constexpr (kMaxTokenTile >= 16) {
      if (left >= 16) {
        Panels::template run<16>(args, first);
        first += 16;
        continue;
      }
    }
    if constexpr (kMaxTokenTile >= 8) {
      if (left >= 8) {
        Panels::template run<8>(args, first);
        first += 8;
        continue;
      }
      if (left >= 5) {
        switch (left) {
          case 5:
            Panels::template run<5>(args, first);
            break;
          case 6:
            Panels::template run<6>(args, first);
            break;
          default:
            Panels::template run<7>(args, first);
            break;
        }
        first += left;
        continue;
      }
    }
    if constexpr (kMaxTokenTile >= 4) {
      if (left >= 3) {
        if (left == 3) {
          Panels::template run<3>(args, first);
          first += 3;
        } else {
          Panels::template run<4>(args, first);
          first += 4;
        }
        continue;
      }
    }
    if (left >= 2) {
      Panels::template run<2>(args, first);
      first += 2;
    } else {
      Panels::template run<1>(args, first);
      first += 1;
    }
  }
}

void linear_panels(const PanelArgs& args) {
  switch (args.kind) {
    case PanelKind::kF32:
      return run_tile<FloatPanels<WideF32>>(args);
    case PanelKind::kF16:
      return run_tile<FloatPanels<WideF16>>(args);
    case PanelKind::kBF16:
      return run_tile<FloatPanels<WideBF16>>(args);
    case PanelKind::kQ4Scale16:
      return run_tile<QuantizedPanels<Q4Scale16>>(args);
    case PanelKind::kQ4Scale32:
      return run_tile<QuantizedPanels<Q4Scale32>>(args);
    case PanelKind::kQ8:
      return run_tile<QuantizedPanels<Q8Scale16>>(args);
    case PanelKind::kQ6:
      return run_tile<QuantizedPanels<Q6Scale32>>(args);
  }
}
