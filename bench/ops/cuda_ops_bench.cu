#include <cmath>
#include <memory>
#include <vector>

#include <benchmark/benchmark.h>

#include "bench/ops/cuda_ceilings.h"
#include "engine/cuda/buffer.h"
#include "engine/cuda/check.h"
#include "engine/cuda/graph.h"
#include "engine/ops/cuda/attention.h"
#include "engine/ops/cuda/elementwise.h"
#include "engine/ops/cuda/linear.h"

// Shapes of Llama-3.1-8B, random bf16 weights. Every figure is a median between CUDA events;
// `share` is the share of the ceiling measured in the same run: the rate of a kernel that only
// reads, or that of cuBLAS on a large product. The same work through cuBLAS, free to choose, stands
// beside ours.

namespace thaw::bench {
namespace {

using namespace thaw::ops::cuda;  // NOLINT: a bench of that module alone
using thaw::cuda::DeviceBuffer;
using thaw::cuda::Graph;
using thaw::cuda::Stream;
using thaw::cuda::StreamView;

constexpr int kLayers = 32;
constexpr int kHidden = 4096;
constexpr int kFfn = 14336;
constexpr int kVocabulary = 128256;
constexpr int kMostRows = 4096;
constexpr int kRepeats = 21;
constexpr AttentionShape kShape{32, 8, 128};

struct Machine {
  Stream stream;
  std::unique_ptr<ops::CudaDevice> device = ops::CudaDevice::create(0).value();
  CudaCeilings ceilings = measure_cuda_ceilings(stream);
};

Machine& machine() {
  static Machine one;
  return one;
}

enum Kind { kQkv, kO, kGateUp, kDown, kHead };
constexpr int kRows[] = {6144, kHidden, 2 * kFfn, kHidden, kVocabulary};
constexpr int kCols[] = {kHidden, kHidden, kHidden, kFfn, kHidden};
constexpr Epilogue kEpilogues[] = {Epilogue::kBf16, Epilogue::kAddF32, Epilogue::kSwigluTiles,
                                   Epilogue::kAddF32, Epilogue::kF32};

// All weights of the model, each layer its own: 15 GB, so that no cache holds any.
struct Weights {
  std::vector<DeviceBuffer<Bf16>> all;
  std::vector<Kind> kinds;
  DeviceBuffer<Bf16> x;
  DeviceBuffer<float> out;

  Weights()
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
    thaw::cuda::check(
        cudaMemsetAsync(out.data(), 0, out.size() * 4, machine().stream.view().get()));
  }

  void ours(int index, int rows, StreamView stream) const {
    const Kind kind = kinds[index];
    LinearParams p;
    p.weight = {all[index].data(), kRows[kind], kCols[kind]};
    p.x = {x.data(), kCols[kind]};
    p.num_rows = rows;
    p.epilogue = kEpilogues[kind];
    p.out = out.data();
    p.out_stride = kRows[kind];
    linear(*machine().device, p, stream);
  }

  void cublas(int index, int rows, StreamView stream) const {
    const Kind kind = kinds[index];
    cublas_linear(all[index].data(), x.data(), out.data(), kRows[kind], kCols[kind], rows,
                  kind == kHead, stream);
  }
};

const Weights& weights() {
  static const Weights one;
  return one;
}

void report(benchmark::State& state, double ms, double bytes, double flops) {
  for (auto _ : state)
    state.SetIterationTime(ms * 1e-3);
  const CudaCeilings& ceilings = machine().ceilings;
  if (bytes > 0) {
    state.counters["TB/s"] = bytes / ms / 1e9;
    state.counters["share"] = bytes / (ms * 1e-3) / ceilings.read_bytes_per_second;
  }
  if (flops > 0) {
    state.counters["TFLOP/s"] = flops / ms / 1e9;
    state.counters["share"] = flops / (ms * 1e-3) / ceilings.flops;
  }
}

// All linears of one step, or those of one kind, in one graph.
void linears(benchmark::State& state, int rows, bool with_head, int only_kind, bool cublas) {
  const Weights& w = weights();
  const Stream& stream = machine().stream;
  double bytes = 0;
  double flops = 0;
  const Graph graph = Graph::capture(stream, [&](StreamView s) {
    for (std::size_t i = 0; i < w.all.size(); ++i) {
      const Kind kind = w.kinds[i];
      if ((kind == kHead && !with_head) || (only_kind >= 0 && kind != only_kind)) continue;
      cublas ? w.cublas(static_cast<int>(i), rows, s) : w.ours(static_cast<int>(i), rows, s);
      bytes += 2.0 * kRows[kind] * kCols[kind];
      flops += 2.0 * kRows[kind] * kCols[kind] * rows;
    }
  });
  const double ms = median_milliseconds(
      kRepeats, [&] { graph.launch(stream); }, stream);
  if (rows <= 512)
    report(state, ms, bytes, 0);
  else
    report(state, ms, 0, flops);
}

// A batch of sequences at 4,000 tokens and one row each (or a whole prompt), on random KV.
void attention_bench(benchmark::State& state, int sequences, bool shared, int first, int rows) {
  const Stream& stream = machine().stream;
  const int blocks = ceil_div(first + rows, kBlockSize);
  const int trunk = shared ? first / kBlockSize : 0;
  const DeviceKv sizes{nullptr, 1, kShape.num_kv_heads, kShape.head_dim};
  const int total = trunk + sequences * (blocks - trunk);
  const DeviceBuffer<Bf16> pool(sizes.block_elements() * total, stream);
  fill_normal(pool.data(), pool.size(), 1.0F, 1, stream);
  const int width = kShape.num_heads * kShape.head_dim;
  const DeviceBuffer<Bf16> q(static_cast<std::size_t>(sequences) * rows * width, stream);
  fill_normal(q.data(), q.size(), 1.0F, 2, stream);
  std::vector<std::vector<BlockId>> tables(sequences);
  std::vector<ops::AttentionSequence> batch;
  for (int i = 0; i < sequences; ++i) {
    for (int b = 0; b < blocks; ++b)
      tables[i].push_back(b < trunk ? b : trunk + i * (blocks - trunk) + b - trunk);
    batch.push_back({tables[i], i * rows, rows, first});
  }
  const std::size_t partials = 20000;
  std::vector<std::int32_t> words(1 << 20);
  words.resize(plan_attention(kShape, batch, partials, words).value());
  const DeviceBuffer<std::int32_t> plan(words.size(), stream);
  thaw::cuda::copy_to_device<std::int32_t>(words, plan, stream);
  const DeviceBuffer<float> workspace(attention_workspace_elements(kShape, partials), stream);
  const DeviceBuffer<Bf16> out(tiles_elements(sequences * rows, width), stream);
  AttentionParams params;
  params.kv = {pool.data(), 1, kShape.num_kv_heads, kShape.head_dim};
  params.shape = kShape;
  params.scale = 1.0F / std::sqrt(128.0F);
  params.q = q.data();
  params.q_stride = width;
  params.plan = plan.data();
  params.workspace = workspace.data();
  params.max_partials = partials;
  params.out = {out.data(), width};
  params.has_tiles = rows >= 256;
  params.has_items = rows < 256;
  const Graph graph = Graph::capture(stream, [&](StreamView s) {
    for (int layer = 0; layer < kLayers; ++layer)
      attention(*machine().device, params, s);
  });
  const double ms = median_milliseconds(
      kRepeats, [&] { graph.launch(stream); }, stream);
  const double pairs = static_cast<double>(rows) * first + 0.5 * rows * (rows + 1.0);
  if (rows >= 256)
    report(state, ms, 0, pairs * sequences * kShape.num_heads * kShape.head_dim * 4 * kLayers);
  else
    report(state, ms, static_cast<double>(pool.size()) * 2 * kLayers, 0);
}

void norm_bench(benchmark::State& state, int rows) {
  const Stream& stream = machine().stream;
  const DeviceBuffer<float> x(static_cast<std::size_t>(rows) * kHidden, stream);
  const DeviceBuffer<float> weight(kHidden, stream);
  const DeviceBuffer<Bf16> out(tiles_elements(rows, kHidden), stream);
  thaw::cuda::check(cudaMemsetAsync(x.data(), 0x3f, x.size() * 4, stream.view().get()));
  thaw::cuda::check(cudaMemsetAsync(weight.data(), 0x3f, kHidden * 4, stream.view().get()));
  const Graph graph = Graph::capture(stream, [&](StreamView s) {
    for (int i = 0; i < 2 * kLayers; ++i)
      rms_norm(*machine().device,
               {x.data(), kHidden, weight.data(), 1e-5F, rows, nullptr, {out.data(), kHidden}}, s);
  });
  report(state,
         median_milliseconds(
             kRepeats, [&] { graph.launch(stream); }, stream),
         6.0 * rows * kHidden * 2 * kLayers, 0);
}

template <typename... Args>
void add(const std::string& name, void (*body)(benchmark::State&, Args...), Args... args) {
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& s) { body(s, args...); })
      ->UseManualTime()
      ->Iterations(1)
      ->Unit(benchmark::kMillisecond);
}

}  // namespace
}  // namespace thaw::bench

int main(int argc, char** argv) {
  using namespace thaw::bench;  // NOLINT: main only registers
  benchmark::Initialize(&argc, argv);
  if (thaw::cuda::device_count() == 0) {
    std::fprintf(stderr, "thaw_cuda_ops_bench needs a CUDA device, and there is none\n");
    return 1;
  }
  const auto info = thaw::cuda::device_info(0).value();
  benchmark::AddCustomContext("gpu", info.name);
  benchmark::AddCustomContext("driver", std::to_string(info.driver_version));
  benchmark::AddCustomContext("read_only_TB_per_s",
                              std::to_string(machine().ceilings.read_bytes_per_second / 1e12));
  benchmark::AddCustomContext("cublas_TFLOP_per_s",
                              std::to_string(machine().ceilings.flops / 1e12));
  for (const int rows : {1, 4, 8, 16, 24, 32, 48, 64})
    for (const bool cublas : {false, true})
      add("step_linears/" + std::to_string(rows) + (cublas ? "/cublas" : "/ours"), linears, rows,
          true, -1, cublas);
  const char* kinds[] = {"qkv", "o", "gate_up", "down", "head"};
  for (const int rows : {1, 16})
    for (int kind = 0; kind < 5; ++kind)
      add("step_" + std::string(kinds[kind]) + "/" + std::to_string(rows) + "/ours", linears, rows,
          true, kind, false);
  for (const int rows : {128, 256, 512, 1024, 4001})
    for (const bool cublas : {false, true})
      add("prefill_linears/" + std::to_string(rows) + (cublas ? "/cublas" : "/ours"), linears, rows,
          false, -1, cublas);
  for (int kind = 0; kind < 4; ++kind)
    for (const bool cublas : {false, true})
      add("prefill_" + std::string(kinds[kind]) + "/4001" + (cublas ? "/cublas" : "/ours"), linears,
          4001, false, kind, cublas);
  add("attention_prefill/4001", attention_bench, 1, false, 0, 4001);
  add("attention_prefill/20_after_4000", attention_bench, 1, false, 4000, 20);
  for (const int sequences : {1, 4, 16}) {
    const std::string n = std::to_string(sequences);
    add("attention_decode/shared_4000/" + n, attention_bench, sequences, true, 4000, 1);
    add("attention_decode/own_4000/" + n, attention_bench, sequences, false, 4000, 1);
  }
  add("attention_decode/own_100/1", attention_bench, 1, false, 100, 1);
  add("rms_norm/1", norm_bench, 1);
  add("rms_norm/4001", norm_bench, 4001);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
