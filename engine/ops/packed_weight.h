#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/base/result.h"
#include "engine/checkpoint/dtype.h"
#include "engine/ops/device.h"

namespace thaw::ops {

/// Layouts of a weight matrix in a WeightImage. The values are stored in images: never renumber.
/// Panels hold 16 rows (outputs) interleaved, so that one output is one SIMD lane.
enum class Packing : std::uint32_t {
  kVectorF32 = 0,  ///< row-major float32: norms, RoPE factors
  kPanelF32 = 1,  ///< 16 rows interleaved, float32
  kPanelF16 = 2,
  kPanelBF16 = 3,
  kPanelQ4Scale16 = 4,  ///< 4-bit q, blocks of 32 columns, f16 scale and f16 minimum: Q4_0, Q4_1
  kPanelQ4Scale32 = 5,  ///< the same with f32 scale and minimum: Q4_K
  kPanelQ8 = 6,  ///< 8-bit q, blocks of 32 columns, f16 scale: Q8_0
  kPanelQ6 = 7,  ///< 6-bit q held in bytes, blocks of 16 columns, f32 scale: Q6_K
  kPanelQ5Scale16 = 8,  ///< 5-bit q, blocks of 32 columns, f16 scale and minimum: Q5_0, Q5_1
  /// Units of 256 columns with an f16 scale (and minimum) for small integer ones.
  kPanelQ5Super = 9,  ///< 5-bit q, 8-bit scale and minimum for 32 columns: Q5_K
  kPanelQ2Super = 10,  ///< 2-bit q, 4-bit scale and minimum for 16 columns: Q2_K
  kPanelQ3Super = 11,  ///< 3-bit q, 8-bit scale for 16 columns: Q3_K
  kPanelIq4 = 12,  ///< 4-bit index of a table of int8, blocks of 32 columns, f16 scale: IQ4_NL
  /// For CUDA: 16 x 64 tiles of bf16 (engine/ops/weight_tiles.h), made by pack_tiles().
  kTiledBF16 = 13,
};
inline constexpr Packing kLastPacking = Packing::kTiledBF16;

/// Images of another version are packed again. Raise it when the bytes of a packing change.
inline constexpr int kPackingVersion = 1;

/// `kExact32` expands every matrix to float32 and keeps activations in float32 (the reference
/// path); `kNative` keeps the stored precision, with 8-bit activations for quantised weights.
enum class ComputeMode { kNative, kExact32 };

/// What becomes of float weights when they are packed.
enum class Quantize {
  kNone,
  kF16,
  kBF16,
  kQ8_0,  // NOLINT(readability-identifier-naming): the format's own name
};

struct PackingOptions {
  ComputeMode mode = ComputeMode::kNative;
  /// kF16 and kBF16 round float matrices of other types to the nearest value, ties to even. kQ8_0
  /// rounds F32, F16 and BF16 matrices as GGUF's Q8_0 does (checkpoint/quantize.h): the image is
  /// the one that a Q8_0 file of these weights gives. Stored quantised formats stay as they are; so
  /// do matrices whose columns are no multiple of 32. kExact32 computes with the stored values and
  /// ignores it.
  Quantize quantize = Quantize::kNone;
  /// Whose kernels read the image. For CUDA every matrix becomes kTiledBF16, whatever it was stored
  /// as; kExact32 and a `quantize` other than kNone and kBF16 are refused when an image is planned.
  DeviceKind device = DeviceKind::kCpu;
};

/// True for the panels of integers, whose products round x to int8 blocks.
bool is_quantized(Packing packing);

Packing choose_packing(checkpoint::DType source, ComputeMode mode);
/// The same with the choices of `options`, for a matrix of `cols` inputs.
Packing choose_packing(checkpoint::DType source, std::int64_t cols, const PackingOptions& options);

/// Bytes of a packed matrix. Rows are padded to 16. REQUIRES: cols fits the packing's blocks.
std::size_t packed_bytes(Packing packing, std::int64_t rows, std::int64_t cols);

/// Packs a stored row-major [rows, cols] matrix; a float one as kPanelQ8 is rounded on the way.
/// Errors: cols not a multiple of the block, a packing that does not fit `source`, and where it
/// rounds, weights that are not finite or too large for Q8_0.
Result<void> pack_matrix(checkpoint::DType source, std::span<const std::byte> stored,
                         std::int64_t rows, std::int64_t cols, Packing packing,
                         std::span<std::byte> out, ThreadPool& threads);

/// A packed matrix that somebody else owns.
struct WeightView {
  Packing packing = Packing::kVectorF32;
  std::int64_t rows = 0;  ///< outputs
  std::int64_t cols = 0;  ///< inputs
  const std::byte* data = nullptr;
};

}  // namespace thaw::ops
