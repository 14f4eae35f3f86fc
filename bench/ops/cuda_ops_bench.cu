#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "bench/ops/cuda_ceilings.h"
#include "bench/ops/cuda_llama.h"
#include "engine/cuda/buffer.h"
#include "engine/cuda/check.h"
#include "engine/cuda/graph.h"
#include "engine/ops/cuda/attention.h"
#include "engine/ops/cuda/draw.h"
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
      if (cublas)
        cublas_linear(w.all[i].data(), w.x.data(), w.out.data(), kRows[kind], kCols[kind], rows,
                      kind == kHead, s);
      else
        linear(*machine().device, w.params(static_cast<int>(i), rows), s);
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
  const AttentionBatch batch(1, sequences, shared, first, rows);
  const Graph graph = Graph::capture(stream, [&](StreamView s) {
    for (int layer = 0; layer < kLayers; ++layer)
      attention(*machine().device, batch.params, s);
  });
  const double ms = median_milliseconds(
      kRepeats, [&] { graph.launch(stream); }, stream);
  const double pairs = static_cast<double>(rows) * first + 0.5 * rows * (rows + 1.0);
  if (rows >= 256)
    report(state, ms, 0, pairs * sequences * kShape.num_heads * kShape.head_dim * 4 * kLayers);
  else
    report(state, ms, static_cast<double>(batch.pool.size()) * 2 * kLayers, 0);
}

// The kernels of a whole decode step in their order, as one graph: what it takes beyond its linears
// is what the small kernels and the gaps between all of them cost. `without`: see Part.
enum Part { kNorms = 1, kRope = 2, kAttention = 4 };
void step_bench(benchmark::State& state, int sequences, bool shared, int context, int without) {
  const Stream& stream = machine().stream;
  const ops::CudaDevice& device = *machine().device;
  const Weights& w = weights();
  const AttentionBatch batch(kLayers, sequences, shared, context, 1);
  const DeviceBuffer<float> residual(static_cast<std::size_t>(sequences) * kHidden, stream);
  const DeviceBuffer<float> norm(kHidden, stream);
  const DeviceBuffer<float> rotation(static_cast<std::size_t>(context + 1) * 64, stream);
  const DeviceBuffer<Bf16> normed(tiles_elements(sequences, kHidden), stream);
  const DeviceBuffer<Bf16> ffn(tiles_elements(sequences, kFfn), stream);
  const DeviceBuffer<float> logits(static_cast<std::size_t>(sequences) * kVocabulary, stream);
  const DeviceBuffer<std::int32_t> ids(sequences, stream);
  const std::vector<DrawRow> greedy(sequences);
  const DeviceBuffer<DrawRow> how(sequences, stream);
  thaw::cuda::copy_to_device<DrawRow>(greedy, how, stream);
  const DeviceBuffer<double> draw_space(draw_workspace_bytes(sequences, kVocabulary) / 8, stream);
  for (const auto* buffer : {&residual, &norm, &rotation})
    thaw::cuda::check(
        cudaMemsetAsync(buffer->data(), 0x3c, buffer->size() * 4, stream.view().get()));
  thaw::cuda::check(cudaMemsetAsync(ids.data(), 0, ids.size() * 4, stream.view().get()));
  double bytes = 0;
  const auto capture = [&](StreamView s) {
    const auto rms = [&] {
      if ((without & kNorms) == 0)
        rms_norm(device,
                 {residual.data(),
                  kHidden,
                  norm.data(),
                  1e-5F,
                  sequences,
                  nullptr,
                  {normed.data(), kHidden}},
                 s);
    };
    const auto product = [&](int index, const Bf16* x, void* out) {
      LinearParams p = w.params(index, sequences);
      p.x.data = const_cast<Bf16*>(x);
      p.out = out;
      linear(device, p, s);
      bytes += 2.0 * p.weight.rows * p.weight.cols;
    };
    embedding(device, {w.weight(4 * kLayers), ids.data(), sequences, residual.data()}, s);
    for (int layer = 0; layer < kLayers; ++layer) {
      rms();
      product(layer * 4, normed.data(), batch.qkv.data());
      RopeAndStoreParams rope;
      rope.qkv = batch.qkv.data();
      rope.stride = kRows[kQkv];
      rope.num_rows = sequences;
      rope.shape = kShape;
      rope.positions = batch.positions.data();
      rope.blocks = batch.blocks.data();
      rope.cos = rotation.data();
      rope.sin = rotation.data();
      rope.kv = batch.params.kv;
      rope.layer = layer;
      if ((without & kRope) == 0) rope_and_store(device, rope, s);
      AttentionParams attend = batch.params;
      attend.layer = layer;
      if ((without & kAttention) == 0) attention(device, attend, s);
      product(layer * 4 + 1, batch.out.data(), residual.data());
      rms();
      product(layer * 4 + 2, normed.data(), ffn.data());
      product(layer * 4 + 3, ffn.data(), residual.data());
    }
    rms();
    product(kLayers * 4, normed.data(), logits.data());
    draw(device,
         {logits.data(), kVocabulary, sequences, kVocabulary, how.data(), draw_space.data(),
          ids.data()},
         s);
  };
  const Graph graph = Graph::capture(stream, capture);
  const double ms = median_milliseconds(
      kRepeats, [&] { graph.launch(stream); }, stream);
  report(state, ms, bytes, 0);
}

void draw_bench(benchmark::State& state, int rows) {
  const Stream& stream = machine().stream;
  const DeviceBuffer<float> logits(static_cast<std::size_t>(rows) * kVocabulary, stream);
  const std::vector<DrawRow> how(rows, {0.7, 0.8F, 0.0F});
  const DeviceBuffer<DrawRow> device_how(rows, stream);
  thaw::cuda::copy_to_device<DrawRow>(how, device_how, stream);
  const DeviceBuffer<double> workspace(draw_workspace_bytes(rows, kVocabulary) / 8, stream);
  const DeviceBuffer<std::int32_t> ids(rows, stream);
  // Two bf16 of normal numbers are a float32 of about the same value.
  fill_normal(reinterpret_cast<Bf16*>(logits.data()), logits.size() * 2, 1.0F, 5, stream);
  const Graph graph = Graph::capture(stream, [&](StreamView s) {
    draw(*machine().device,
         {logits.data(), kVocabulary, rows, kVocabulary, device_how.data(), workspace.data(),
          ids.data()},
         s);
  });
  report(state,
         median_milliseconds(
             kRepeats, [&] { graph.launch(stream); }, stream),
         4.0 * rows * kVocabulary, 0);
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
  for (const int sequences : {1, 4, 8, 16}) {
    const std::string n = std::to_string(sequences);
    add("decode_step/short/" + n, step_bench, sequences, false, 100, 0);
    add("decode_step/shared_4000/" + n, step_bench, sequences, true, 4000, 0);
  }
  add("decode_step/without_norms/1", step_bench, 1, false, 100, int{kNorms});
  add("decode_step/without_rope_and_attention/1", step_bench, 1, false, 100,
      int{kRope + kAttention});
  add("decode_step/without_all/1", step_bench, 1, false, 100, int{kNorms + kRope + kAttention});
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
  for (const int rows : {80, 320})
    for (int kind = 0; kind < 4; ++kind)
      for (const bool cublas : {false, true})
        add("chunk_" + std::string(kinds[kind]) + "/" + std::to_string(rows) +
                (cublas ? "/cublas" : "/ours"),
            linears, rows, false, kind, cublas);
  add("attention_prefill/4001", attention_bench, 1, false, 0, 4001);
  add("attention_prefill/20_after_4000", attention_bench, 1, false, 4000, 20);
  for (const auto& [sequences, rows] :
       {std::pair(1, 64), std::pair(1, 100), std::pair(4, 20), std::pair(4, 40), std::pair(16, 20)})
    add("attention_chunks/" + std::to_string(sequences) + "x" + std::to_string(rows) +
            "_after_4000",
        attention_bench, sequences, true, 4000, rows);
  for (const int sequences : {1, 4, 8, 16}) {
    const std::string n = std::to_string(sequences);
    add("attention_decode/shared_4000/" + n, attention_bench, sequences, true, 4000, 1);
    add("attention_decode/own_4000/" + n, attention_bench, sequences, false, 4000, 1);
  }
  add("attention_decode/own_100/1", attention_bench, 1, false, 100, 1);
  for (const int rows : {1, 16})
    add("draw/" + std::to_string(rows), draw_bench, rows);
  add("rms_norm/1", norm_bench, 1);
  add("rms_norm/4001", norm_bench, 4001);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
