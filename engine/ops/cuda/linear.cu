#include <string>

#include "engine/base/error.h"
#include "engine/cuda/check.h"
#include "engine/ops/cuda/kernels.h"
#include "engine/ops/cuda/linear.h"

namespace thaw::ops::cuda {
namespace {

void require(bool holds, const char* what, std::int64_t value, const char* right) {
  if (!holds)
    throw Exception(make_error(Errc::kInvalidArgument, std::string("linear: ") + what + " is " +
                                                           std::to_string(value) + "; " + right));
}

__host__ __device__ int placed_row(WeightRows placement, int first_row, int row) {
  if (placement == WeightRows::kPlain) return first_row + row;
  return first_row + row / 8 * 16 + (placement == WeightRows::kUp ? 8 : 0) + row % 8;
}

// One thread moves 8 columns of a row, 16 bytes: both layouts keep those together.
__global__ void tile_weight_kernel(TileWeightParams p) {
  const int units = p.cols / 8;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
       i < static_cast<std::int64_t>(p.rows) * units;
       i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) {
    const int row = static_cast<int>(i / units);
    const int col = static_cast<int>(i % units) * 8;
    const uint4 value =
        *reinterpret_cast<const uint4*>(p.source + static_cast<std::size_t>(row) * p.cols + col);
    *reinterpret_cast<uint4*>(
        p.out + weight_index(placed_row(p.placement, p.first_row, row), col, p.cols)) = value;
  }
}

__global__ void tile_rows_kernel(const Bf16* source, int num_rows, int cols, Bf16* out) {
  const int units = cols / 8;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x;
       i < static_cast<std::int64_t>(num_rows) * units;
       i += static_cast<std::int64_t>(gridDim.x) * blockDim.x) {
    const int row = static_cast<int>(i / units);
    const int col = static_cast<int>(i % units) * 8;
    *reinterpret_cast<uint4*>(out + tiles_index(row, col, cols)) =
        *reinterpret_cast<const uint4*>(source + static_cast<std::size_t>(row) * cols + col);
  }
}

void require_heads(const LinearParams& params) {
  const RopeAndStoreParams& heads = *params.heads;
  const AttentionShape& shape = heads.shape;
  require(params.epilogue == Epilogue::kBf16 && stores_heads(params.kernel, params.num_rows),
          "num_rows", params.num_rows,
          "only the tile kernel stores heads, of bf16 and of at least 256 rows");
  require(shape.head_dim == 64 || shape.head_dim == 128, "heads.shape.head_dim", shape.head_dim,
          "it must be 64 or 128");
  require(heads.kv.head_dim == shape.head_dim && heads.kv.num_kv_heads == shape.num_kv_heads,
          "heads.kv.head_dim", heads.kv.head_dim, "the KV layout must be the shape's");
  require(heads.layer >= 0 && heads.layer < heads.kv.num_layers, "heads.layer", heads.layer,
          "it must be one of the KV layout's");
  require((shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim == params.weight.rows,
          "weight.rows", params.weight.rows, "it must be the heads of q, k and v");
  require(heads.q_norm == nullptr && heads.k_norm == nullptr, "heads.norm", 1,
          "a norm of q or k is rope_and_store()'s");
  require(heads.num_rows == params.num_rows && heads.qkv == params.out &&
              heads.stride == params.out_stride,
          "heads.num_rows", heads.num_rows, "the heads must be the linear's output");
  require(heads.bad_values != nullptr, "heads.bad_values", 0, "there must be room for its flags");
}

}  // namespace

bool stores_copies(LinearKernel kernel, int num_rows) {
  return kernel == LinearKernel::kTile ||
         (kernel == LinearKernel::kAuto && num_rows > kMaxStreamRows);
}

bool stores_heads(LinearKernel kernel, int num_rows) {
  constexpr int kManyRows = 256;  // fewer may be the work of tiles narrower than a head
  return stores_copies(kernel, num_rows) && num_rows >= kManyRows;
}

void linear(const CudaDevice& device, const LinearParams& params, thaw::cuda::StreamView stream) {
  require(params.num_rows > 0, "num_rows", params.num_rows, "it must be at least 1");
  require(params.weight.rows > 0, "weight.rows", params.weight.rows, "it must be at least 1");
  require(params.weight.cols > 0 && params.weight.cols % kChunk == 0, "weight.cols",
          params.weight.cols, "it must be a multiple of 64");
  require(params.x.cols == params.weight.cols, "x.cols", params.x.cols,
          "it must be the weight's cols");
  if (params.epilogue == Epilogue::kSwigluTiles) {
    require(params.weight.rows % 128 == 0, "weight.rows", params.weight.rows,
            "gate and up together must be a multiple of 128, so that the result is tiles");
    require(params.bias == nullptr, "bias", 1, "gate and up have none");
    require(params.out_stride == 0 || params.out_stride >= params.weight.rows / 2, "out_stride",
            params.out_stride, "it must be 0 or at least half the weight's rows");
  } else {
    require(params.out_stride >= params.weight.rows, "out_stride", params.out_stride,
            "it must be at least the weight's rows");
  }
  const bool by_tiles = stores_copies(params.kernel, params.num_rows);
  require(params.copies.empty() || (by_tiles && params.epilogue != Epilogue::kBf16 &&
                                    params.copies.size() <= kMostCopies),
          "copies.size", static_cast<std::int64_t>(params.copies.size()),
          "only the tile kernel stores up to 7, of float32 and of tiles");
  if (params.heads != nullptr) require_heads(params);
  const bool sendable =
      params.epilogue == Epilogue::kAddF32 ||
      (params.epilogue == Epilogue::kSwigluTiles && params.num_rows <= kTokenTile);
  require(params.exchange.size == 1 || (!by_tiles && sendable), "exchange.size",
          params.exchange.size, "only the streaming kernel sends, of what packets can hold");
  if (by_tiles) {
    linear_tile(device, params, stream);
    return;
  }
  for (int row = 0; row < params.num_rows; row += kMaxStreamRows)
    linear_stream(device, params, row, std::min(kMaxStreamRows, params.num_rows - row), stream);
}

void tile_weight(const TileWeightParams& params, thaw::cuda::StreamView stream) {
  require(params.cols > 0 && params.cols % kChunk == 0, "cols", params.cols,
          "it must be a multiple of 64");
  require(params.placement == WeightRows::kPlain ||
              (params.first_row % 16 == 0 && params.rows % 8 == 0),
          "rows", params.rows, "interleaved rows come in 8s, from a multiple of 16");
  if (params.rows <= 0) return;
  tile_weight_kernel<<<1024, 256, 0, stream.get()>>>(params);
  thaw::cuda::check(cudaGetLastError(), "tile_weight");
}

void tile_weight_on_host(std::span<const std::uint16_t> source, int rows, int cols,
                         WeightRows placement, int first_row, std::span<std::uint16_t> out) {
  for (int row = 0; row < rows; ++row)
    for (int col = 0; col < cols; ++col)
      out[weight_index(placed_row(placement, first_row, row), col, cols)] =
          source[static_cast<std::size_t>(row) * cols + col];
}

void tile_rows(const Bf16* source, int num_rows, int cols, Tiles out,
               thaw::cuda::StreamView stream) {
  require(cols > 0 && cols % kChunk == 0 && out.cols == cols, "cols", cols,
          "it must be a multiple of 64 and equal to the tiles'");
  if (num_rows <= 0) return;
  tile_rows_kernel<<<1024, 256, 0, stream.get()>>>(source, num_rows, cols, out.data);
  thaw::cuda::check(cudaGetLastError(), "tile_rows");
}

}  // namespace thaw::ops::cuda
