#include <cmath>

#include "bench/ops/cuda_llama.h"
#include "engine/cuda/check.h"

namespace thaw::bench {

using namespace thaw::ops::cuda;  // NOLINT: a bench of that module alone
using thaw::cuda::DeviceBuffer;

namespace {

constexpr Epilogue kEpilogues[] = {Epilogue::kBf16, Epilogue::kAddF32, Epilogue::kSwigluTiles,
                                   Epilogue::kAddF32, Epilogue::kF32};
constexpr std::size_t kPartials = 20000;

template <typename T>
DeviceBuffer<T> to_device(const std::vector<T>& from) {
  DeviceBuffer<T> buffer(from.size(), machine().stream);
  thaw::cuda::copy_to_device<T>(from, buffer, machine().stream);
  machine().stream.synchronize();
  return buffer;
}

}  // namespace

Machine& machine() {
  static Machine one;
  return one;
}

Weights::Weights()
    : x(tiles_elements(kMostRows, kFfn), machine().stream),
      out(static_cast<std::size_t>(kMostRows) * kFfn, machine().stream) {
  const auto add = [&](Kind kind) {
    all.emplace_back(weight_elements(kRows[kind], kCols[kind]), machine().stream);
    fill_normal(all.back().data(), all.back().size(), 0.02F, static_cast<unsigned>(all.size()),
                machine().stream);
    kinds.push_back(kind);
  };
  for (int layer = 0; layer < kLayers; ++layer)
    for (const Kind kind : {kQkv, kO, kGateUp, kDown})
      add(kind);
  add(kHead);
  fill_normal(x.data(), x.size(), 1.0F, 1000, machine().stream);
  thaw::cuda::check(cudaMemsetAsync(out.data(), 0, out.size() * 4, machine().stream.view().get()));
}

LinearParams Weights::params(int index, int rows) const {
  const Kind kind = kinds[index];
  LinearParams p;
  p.weight = weight(index);
  p.x = {x.data(), kCols[kind]};
  p.num_rows = rows;
  p.epilogue = kEpilogues[kind];
  p.out = out.data();
  p.out_stride = kRows[kind];
  return p;
}

const Weights& weights() {
  static const Weights one;
  return one;
}

AttentionBatch::AttentionBatch(int layers, int sequences, bool shared, int first, int rows) {
  const auto& stream = machine().stream;
  const int needed = ceil_div(first + rows, kBlockSize);
  const int trunk = shared ? first / kBlockSize : 0;
  const DeviceKv sizes{nullptr, layers, kShape.num_kv_heads, kShape.head_dim};
  pool =
      DeviceBuffer<Bf16>(sizes.block_elements() * (trunk + sequences * (needed - trunk)), stream);
  fill_normal(pool.data(), pool.size(), 1.0F, 1, stream);
  const int width = kShape.num_heads * kShape.head_dim;
  qkv = DeviceBuffer<Bf16>(static_cast<std::size_t>(sequences) * rows * kRows[kQkv], stream);
  fill_normal(qkv.data(), qkv.size(), 1.0F, 2, stream);
  std::vector<std::vector<BlockId>> tables(sequences);
  std::vector<ops::AttentionSequence> batch;
  std::vector<std::int32_t> row_positions;
  std::vector<BlockId> row_blocks;
  for (int i = 0; i < sequences; ++i) {
    for (int b = 0; b < needed; ++b)
      tables[i].push_back(b < trunk ? b : trunk + i * (needed - trunk) + b - trunk);
    batch.push_back({tables[i], i * rows, rows, first});
    for (int row = 0; row < rows; ++row) {
      row_positions.push_back(first + row);
      row_blocks.push_back(tables[i][(first + row) / kBlockSize]);
    }
  }
  std::vector<std::int32_t> words(1 << 20);
  words.resize(plan_attention(kShape, batch, kPartials, words).value());
  plan = to_device(words);
  positions = to_device(row_positions);
  blocks = to_device(row_blocks);
  workspace = DeviceBuffer<float>(attention_workspace_elements(kShape, kPartials), stream);
  out = DeviceBuffer<Bf16>(tiles_elements(sequences * rows, width), stream);
  fill_normal(out.data(), out.size(), 1.0F, 3, stream);
  params.kv = {pool.data(), layers, kShape.num_kv_heads, kShape.head_dim};
  params.shape = kShape;
  params.scale = 1.0F / std::sqrt(128.0F);
  params.q = qkv.data();
  params.q_stride = kRows[kQkv];
  params.plan = plan.data();
  params.workspace = workspace.data();
  params.max_partials = kPartials;
  params.out = {out.data(), width};
  const AttentionPlanHeader header = header_of(words);
  params.has_tiles = header.num_tiles > 0;
  params.has_items = header.num_items > 0;
  params.width = header.width;
}

}  // namespace thaw::bench
