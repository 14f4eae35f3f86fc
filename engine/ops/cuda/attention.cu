#include <string>

#include "engine/base/error.h"
#include "engine/ops/cuda/attention.h"
#include "engine/ops/cuda/attention_kernels.h"
#include "engine/ops/cuda/attention_math.cuh"
#include "engine/ops/cuda/kernels.h"

namespace thaw::ops::cuda {

void prepare_attention_kernels() {
  prepare_split_kernels();
  prepare_wide_kernels();
  prepare_prefill_kernels();
}

void attention(const CudaDevice& device, const AttentionParams& params,
               thaw::cuda::StreamView stream) {
  const AttentionShape& shape = params.shape;
  const auto require = [](bool holds, const char* what, std::int64_t value, const char* right) {
    if (!holds)
      throw Exception(make_error(
          Errc::kInvalidArgument,
          std::string("attention: ") + what + " is " + std::to_string(value) + "; " + right));
  };
  require(shape.head_dim == 64 || shape.head_dim == 128, "head_dim", shape.head_dim,
          "it must be 64 or 128");
  require(params.kv.head_dim == shape.head_dim && params.kv.num_kv_heads == shape.num_kv_heads,
          "kv.head_dim", params.kv.head_dim, "the KV layout must be the shape's");
  require(params.layer >= 0 && params.layer < params.kv.num_layers, "layer", params.layer,
          "it must be one of the KV layout's");
  require(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0, "num_heads",
          shape.num_heads, "it must be a multiple of num_kv_heads");
  require(params.out.cols == shape.num_heads * shape.head_dim, "out.cols", params.out.cols,
          "it must be num_heads * head_dim");
  require(params.q_stride % 8 == 0, "q_stride", params.q_stride,
          "it must be a multiple of 8: queries are read 16 bytes at a time");
  AttentionKernelParams p{};
  p.kv = params.kv;
  p.layer = params.layer;
  p.num_heads = shape.num_heads;
  p.group = shape.num_heads / shape.num_kv_heads;
  p.window = shape.window;
  p.factor = params.scale * kLog2E;
  p.q = params.q;
  p.q_stride = params.q_stride;
  p.plan = params.plan;
  p.counters = const_cast<std::int32_t*>(params.plan);  // of splits done; zero before and after
  p.partial_out = params.workspace;
  p.partial_stats = params.workspace + params.max_partials * shape.num_heads * shape.head_dim;
  p.out = params.out.data;
  p.out_cols = params.out.cols;
  if (params.has_tiles) attention_tiles(device, p, stream);
  if (!params.has_items) return;
  if (params.width == ItemWidth::kWide)
    attention_wide_splits(device, p, stream);
  else
    attention_splits(device, p, stream);
}

}  // namespace thaw::ops::cuda
