#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/cuda/stream.h"
#include "engine/ops/cuda/device.h"
#include "engine/ops/cuda/elementwise.h"
#include "engine/ops/cuda/exchange.h"
#include "engine/ops/cuda/tiles.h"

namespace thaw::ops::cuda {

/// What becomes of a product. The product itself is float32 in every case.
enum class Epilogue {
  kBf16,  ///< out: bf16 [num_rows][out_stride], rounded once
  kF32,  ///< out: float32 [num_rows][out_stride]: logits
  kAddF32,  ///< out += product, float32 [num_rows][out_stride]: the residual stream
  kSwigluTiles,  ///< out: tiles [num_rows][weight.rows / 2] = silu(gate) * up, rounded once; the
                 ///< weight holds gate and up interleaved (WeightRows)
};

/// Which of the two equal kernels computes it. `kAuto` is the faster one for the number of rows.
enum class LinearKernel { kAuto, kStream, kTile };

struct LinearParams {
  TiledWeight weight;
  Tiles x;  ///< [num_rows, weight.cols]
  int num_rows = 0;
  Epilogue epilogue = Epilogue::kBf16;
  void* out = nullptr;
  /// Elements from row to row. kSwigluTiles: columns of the tiles that the output is a part of,
  /// whose first column `out` points at; 0: it is all of them.
  std::int64_t out_stride = 0;
  const float* bias = nullptr;  ///< [weight.rows] or null; added to the product in float32
  LinearKernel kernel = LinearKernel::kAuto;
  /// What is stored is stored at these distances from `out`, in bytes, too: in the matrices of
  /// other ranks, while the product goes on. Only where stores_copies(); not of kBf16.
  std::span<const std::int64_t> copies;
  /// Of kBf16: the output is the heads of q, k and v, and they become what rope_and_store() of
  /// these parameters makes of them, k and v in the blocks alone; mark_bad_keys() must follow. No
  /// norms. Only where stores_heads().
  const RopeAndStoreParams* heads = nullptr;
  /// Of several ranks: what is stored is sent to the others while the product goes on, as the
  /// packets of exchange `ordinal`, which then only receives (GatherParams::sent). Only of the
  /// streaming kernel, of kAddF32 and of kSwigluTiles with at most 64 rows.
  ExchangeView exchange;
  std::uint32_t ordinal = 0;
  /// The kernels ahead exchange with other ranks: the streaming kernel asks for less of the weights
  /// until they are done, so that what they read and wait for is not behind it in the memory's
  /// queue.
  bool behind_exchange = false;
};

/// Whether linear() of so many rows can store copies of its output: the tile kernel does.
bool stores_copies(LinearKernel kernel, int num_rows);
inline constexpr int kMostCopies = 7;

/// Whether linear() of so many rows can store heads: the tile kernel does, with many rows.
bool stores_heads(LinearKernel kernel, int num_rows);

/// out = epilogue(x * weight^T + bias). Several outputs of one input (q, k, v; gate, up) are one
/// weight whose rows follow one another, and one launch.
///
/// Each product is one chain of tensor-core steps over K, 16 at a time, ascending, from +0, for any
/// num_rows: the streaming kernel (1 to 64 rows; reads the weights once, at the rate of the memory)
/// and the tile kernel (wgmma) give the same bits (docs/exactness.md; linear_self_test proves it on
/// the device at hand). Throws `kInvalidArgument` for shapes that cannot be.
void linear(const CudaDevice& device, const LinearParams& params, thaw::cuda::StreamView stream);

struct TileWeightParams {
  const Bf16* source = nullptr;  ///< row-major [rows, cols], device memory
  int rows = 0;
  int cols = 0;
  WeightRows placement = WeightRows::kPlain;
  int first_row = 0;  ///< in the tiled weight; a multiple of 16 for kGate and kUp
  Bf16* out = nullptr;  ///< weight_elements(all rows, cols); the caller zeroes the padding
};

/// Rearranges a stored matrix into weight layout, on the device.
void tile_weight(const TileWeightParams& params, thaw::cuda::StreamView stream);

/// The same on the host, element for element, for images that are packed once and cached.
void tile_weight_on_host(std::span<const std::uint16_t> source, int rows, int cols,
                         WeightRows placement, int first_row, std::span<std::uint16_t> out);

/// Row-major bf16 [num_rows, cols] to tiles. The operations write tiles themselves; this is for
/// tests and for inputs from elsewhere.
void tile_rows(const Bf16* source, int num_rows, int cols, Tiles out,
               thaw::cuda::StreamView stream);

/// One shape in use.
struct LinearShape {
  int rows = 0;
  int cols = 0;
};

/// Outputs that differ between the two kernels on random data with outliers.
struct LinearDisagreement {
  LinearShape shape;
  int num_rows = 0;
  std::int64_t outputs = 0;  ///< how many differ in any bit
};

/// Compares the streaming and the tile kernel bitwise on every shape, for 1, 2, 3, 8, 17, 64 and
/// 200 rows. Empty: they agree, and kAuto may choose freely. Otherwise the caller must name one
/// kernel for all row counts (kStream serves any number, 64 rows at a time) or drop the exact
/// claim, loudly. For start-up: allocates and synchronises. Errors: no memory, a failed launch.
Result<std::vector<LinearDisagreement>> linear_self_test(const CudaDevice& device,
                                                         std::span<const LinearShape> shapes,
                                                         thaw::cuda::StreamView stream);

}  // namespace thaw::ops::cuda
