#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include <benchmark/benchmark.h>

#include "bench/ops/peak.h"
#include "engine/ops/attention.h"
#include "engine/ops/device.h"
#include "engine/ops/elementwise.h"
#include "engine/ops/linear.h"

// Shapes of SmolLM2-135M: hidden 576, 9 query and 3 KV heads of 64, FFN 1536, vocabulary 49152.

namespace thaw::bench {
namespace {

using namespace thaw::ops;  // NOLINT: a bench of that module alone

const Peaks& peaks_of(int threads) {
  static const Peaks one = measure_peaks(1);
  static const Peaks two = measure_peaks(2);
  return threads == 1 ? one : two;
}

CpuDevice& device_of(int threads) {
  static const auto one = std::move(CpuDevice::create(1)).value();
  static const auto two = std::move(CpuDevice::create(2)).value();
  return threads == 1 ? *one : *two;
}

std::vector<float> random_floats(std::size_t count) {
  std::mt19937 engine(1);
  std::normal_distribution<float> normal(0.0F, 1.0F);
  std::vector<float> values(count);
  for (float& value : values)
    value = normal(engine);
  return values;
}

struct Weight {
  std::vector<std::byte> memory;
  WeightView view;
};

/// Packed bytes of normal positive scales and varied integers; what they mean does not matter here.
Weight make_weight(Packing packing, std::int64_t rows, std::int64_t cols) {
  Weight weight;
  weight.memory.resize(packed_bytes(packing, rows, cols));
  for (std::size_t i = 0; i < weight.memory.size(); ++i)
    weight.memory[i] = static_cast<std::byte>(0x20 + i % 23);
  weight.view = {packing, rows, cols, weight.memory.data()};
  return weight;
}

/// Rates of `products` multiplications a row over weights of `bytes`, and their shares of the
/// peaks.
void count_linear(benchmark::State& state, Packing packing, double bytes, double products) {
  const auto rounds = static_cast<double>(state.iterations());
  const Peaks& peaks = peaks_of(static_cast<int>(state.range(0)));
  const double peak = is_quantized(packing) ? peaks.int8_gops : peaks.f32_gflops;
  const double giga_bytes = bytes * rounds * 1e-9;
  const double giga_operations = 2 * products * static_cast<double>(state.range(1)) * rounds * 1e-9;
  state.counters["GB/s"] = benchmark::Counter(giga_bytes, benchmark::Counter::kIsRate);
  state.counters["GOP/s"] = benchmark::Counter(giga_operations, benchmark::Counter::kIsRate);
  state.counters["of_read"] =
      benchmark::Counter(giga_bytes / peaks.read_gbs, benchmark::Counter::kIsRate);
  state.counters["of_peak"] =
      benchmark::Counter(giga_operations / std::max(peak, 1.0), benchmark::Counter::kIsRate);
}

/// All linears of enough layers that the weights do not stay in the caches, as decode sees them.
void run_layers(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(0));
  const int rows = static_cast<int>(state.range(1));
  constexpr int kLayers = 30;
  static std::vector<Weight> weights;
  if (weights.empty()) {
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const auto& [out, in] : {std::pair{576, 576},
                                    {192, 576},
                                    {192, 576},
                                    {576, 576},
                                    {1536, 576},
                                    {1536, 576},
                                    {576, 1536}})
        weights.push_back(make_weight(Packing::kPanelQ4Scale16, out, in));
    }
  }
  const std::vector<float> x = random_floats(static_cast<std::size_t>(rows) * 1536);
  std::vector<float> out(static_cast<std::size_t>(rows) * 1536 * 3);
  CpuDevice& device = device_of(threads);
  double bytes = 0;
  double products = 0;
  for (const Weight& weight : weights) {
    bytes += static_cast<double>(weight.memory.size());
    products += static_cast<double>(weight.view.rows * weight.view.cols);
  }
  float* a = out.data();
  float* b = a + static_cast<std::size_t>(rows) * 1536;
  float* c = b + static_cast<std::size_t>(rows) * 1536;
  for (auto _ : state) {
    for (std::size_t i = 0; i < weights.size(); i += 7) {
      const LinearOutput qkv[] = {
          {weights[i].view, a}, {weights[i + 1].view, b}, {weights[i + 2].view, c}};
      linear(device, x.data(), rows, qkv);
      const LinearOutput attention_out[] = {{weights[i + 3].view, a}};
      linear(device, x.data(), rows, attention_out);
      const LinearOutput up[] = {{weights[i + 4].view, a}, {weights[i + 5].view, b}};
      linear(device, x.data(), rows, up);
      const LinearOutput down[] = {{weights[i + 6].view, c}};
      linear(device, x.data(), rows, down);
    }
  }
  count_linear(state, Packing::kPanelQ4Scale16, bytes, products);
}
BENCHMARK(run_layers)
    ->Name("linear_q4_30_layers")
    ->ArgNames({"threads", "rows"})
    ->ArgsProduct({{1, 2}, {1, 2, 4, 8, 16, 64, 128}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

void run_matrix(benchmark::State& state, Packing packing, std::int64_t out_rows,
                std::int64_t cols) {
  const int threads = static_cast<int>(state.range(0));
  const int rows = static_cast<int>(state.range(1));
  const Weight weight = make_weight(packing, out_rows, cols);
  const std::vector<float> x = random_floats(static_cast<std::size_t>(rows * cols));
  std::vector<float> out(static_cast<std::size_t>(rows * out_rows));
  const LinearOutput output{weight.view, out.data()};
  for (auto _ : state)
    linear(device_of(threads), x.data(), rows, {&output, 1});
  count_linear(state, packing, static_cast<double>(weight.memory.size()),
               static_cast<double>(out_rows * cols));
}
/// Every packing over more weights than the second level of cache holds, as decode (1 row) and
/// prefill (128) see them.
void run_packing_stream(benchmark::State& state, Packing packing) {
  constexpr int kMatrices = 16;
  constexpr std::int64_t kWidth = 2048;
  const int rows = static_cast<int>(state.range(1));
  std::vector<Weight> weights;
  double bytes = 0;
  for (int i = 0; i < kMatrices; ++i) {
    weights.push_back(make_weight(packing, kWidth, kWidth));
    bytes += static_cast<double>(weights.back().memory.size());
  }
  const std::vector<float> x = random_floats(static_cast<std::size_t>(rows * kWidth));
  std::vector<float> out(static_cast<std::size_t>(rows * kWidth));
  for (auto _ : state) {
    for (const Weight& weight : weights) {
      const LinearOutput output{weight.view, out.data()};
      linear(device_of(static_cast<int>(state.range(0))), x.data(), rows, {&output, 1});
    }
  }
  state.counters["bits"] = bytes * 8 / (static_cast<double>(kWidth * kWidth) * kMatrices);
  count_linear(state, packing, bytes, static_cast<double>(kWidth * kWidth) * kMatrices);
}
void stream_arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"threads", "rows"})->ArgsProduct({{1}, {1, 128}})->UseRealTime();
  bench->Unit(benchmark::kMillisecond);
}
BENCHMARK_CAPTURE(run_packing_stream, f16, Packing::kPanelF16)->Apply(stream_arguments);
BENCHMARK_CAPTURE(run_packing_stream, q8, Packing::kPanelQ8)->Apply(stream_arguments);
BENCHMARK_CAPTURE(run_packing_stream, q6, Packing::kPanelQ6)->Apply(stream_arguments);
BENCHMARK_CAPTURE(run_packing_stream, q5_super, Packing::kPanelQ5Super)->Apply(stream_arguments);
BENCHMARK_CAPTURE(run_packing_stream, q5_scale16, Packing::kPanelQ5Scale16)
    ->Apply(stream_arguments);
BENCHMARK_CAPTURE(run_packing_stream, q4_scale16, Packing::kPanelQ4Scale16)
    ->Apply(stream_arguments);
BENCHMARK_CAPTURE(run_packing_stream, q4_scale32, Packing::kPanelQ4Scale32)
    ->Apply(stream_arguments);
BENCHMARK_CAPTURE(run_packing_stream, iq4, Packing::kPanelIq4)->Apply(stream_arguments);
BENCHMARK_CAPTURE(run_packing_stream, q3_super, Packing::kPanelQ3Super)->Apply(stream_arguments);
BENCHMARK_CAPTURE(run_packing_stream, q2_super, Packing::kPanelQ2Super)->Apply(stream_arguments);

BENCHMARK_CAPTURE(run_matrix, head_q8, Packing::kPanelQ8, 49152, 576)
    ->ArgNames({"threads", "rows"})
    ->ArgsProduct({{1, 2}, {1, 4, 16, 64}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(run_matrix, q4_scale32, Packing::kPanelQ4Scale32, 1536, 1536)
    ->ArgNames({"threads", "rows"})
    ->ArgsProduct({{1}, {1, 64}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(run_matrix, q6, Packing::kPanelQ6, 1536, 1536)
    ->ArgNames({"threads", "rows"})
    ->ArgsProduct({{1}, {1, 64}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(run_matrix, f32, Packing::kPanelF32, 1536, 1536)
    ->ArgNames({"threads", "rows"})
    ->ArgsProduct({{1}, {1, 4, 64}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(run_matrix, bf16, Packing::kPanelBF16, 1536, 1536)
    ->ArgNames({"threads", "rows"})
    ->ArgsProduct({{1}, {1, 4, 64}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

/// KV memory of one model with `blocks` blocks; 30 layers, so that a step reads it from memory.
struct KvMemory {
  explicit KvMemory(int blocks) {
    kv.dtype = KvDType::kBF16;
    kv.num_layers = 30;
    kv.num_kv_heads = 3;
    kv.head_dim = 64;
    memory.resize(kv.block_bytes() * static_cast<std::size_t>(blocks));
    auto* elements = reinterpret_cast<std::uint16_t*>(memory.data());
    for (std::size_t i = 0; i < memory.size() / 2; ++i)
      elements[i] = static_cast<std::uint16_t>(0x3e00 + i % 251);
    kv.base = memory.data();
  }
  std::vector<std::byte> memory;
  PagedKv kv;
};

AttentionArgs attention_args(const KvMemory& memory, std::span<const AttentionSequence> sequences,
                             const std::vector<float>& q, std::vector<float>& out) {
  AttentionArgs args;
  args.kv = memory.kv;
  args.num_heads = 9;
  args.scale = 0.125F;
  args.sequences = sequences;
  args.q = q.data();
  args.out = out.data();
  return args;
}

/// `branches` sequences of one row each on a shared trunk of 2,000 tokens, each with blocks of its
/// own behind it; all layers of one step.
void run_decode_attention(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(0));
  const int branches = static_cast<int>(state.range(1));
  const KvMemory memory(125 + branches * 4);
  std::vector<std::vector<BlockId>> tables;
  std::vector<AttentionSequence> sequences;
  for (int b = 0; b < branches; ++b) {
    std::vector<BlockId> table;
    for (BlockId id = 0; id < 125; ++id)
      table.push_back(id);
    for (BlockId id = 0; id < 4; ++id)
      table.push_back(125 + b * 4 + id);
    tables.push_back(table);
  }
  for (int b = 0; b < branches; ++b)
    sequences.push_back({tables[static_cast<std::size_t>(b)], b, 1, 2030});
  const std::vector<float> q = random_floats(static_cast<std::size_t>(branches) * 576);
  std::vector<float> out(q.size());
  AttentionArgs args = attention_args(memory, sequences, q, out);
  for (auto _ : state) {
    for (args.layer = 0; args.layer < 30; ++args.layer)
      attention(device_of(threads), args);
  }
  const auto rounds = static_cast<double>(state.iterations());
  const double operations = 30.0 * branches * 9 * 2031 * 64 * 4;
  const double bytes = 30.0 * 3 * 2 * 64 * 2 * (2000 + 31.0 * branches);
  state.counters["GFLOP/s"] =
      benchmark::Counter(operations * rounds * 1e-9, benchmark::Counter::kIsRate);
  state.counters["of_f32"] = benchmark::Counter(
      operations * rounds * 1e-9 / peaks_of(threads).f32_gflops, benchmark::Counter::kIsRate);
  state.counters["of_read"] = benchmark::Counter(bytes * rounds * 1e-9 / peaks_of(threads).read_gbs,
                                                 benchmark::Counter::kIsRate);
}
BENCHMARK(run_decode_attention)
    ->Name("attention_decode_30_layers")
    ->ArgNames({"threads", "branches"})
    ->ArgsProduct({{1, 2}, {1, 4, 8, 16}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

/// Prefill of 2,010 tokens in chunks, all 30 layers.
void run_prefill_attention(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(0));
  const int chunk = static_cast<int>(state.range(1));
  constexpr int kTokens = 2010;
  const KvMemory memory(126);
  std::vector<BlockId> table;
  for (BlockId id = 0; id < 126; ++id)
    table.push_back(id);
  const std::vector<float> q = random_floats(static_cast<std::size_t>(chunk) * 576);
  std::vector<float> out(q.size());
  for (auto _ : state) {
    for (int first = 0; first < kTokens; first += chunk) {
      const AttentionSequence sequence{table, 0, std::min(chunk, kTokens - first), first};
      AttentionArgs args = attention_args(memory, {&sequence, 1}, q, out);
      for (args.layer = 0; args.layer < 30; ++args.layer)
        attention(device_of(threads), args);
    }
  }
  const auto rounds = static_cast<double>(state.iterations());
  const double operations = 30.0 * 9 * kTokens * (kTokens + 1) / 2 * 64 * 4;
  state.counters["GFLOP/s"] =
      benchmark::Counter(operations * rounds * 1e-9, benchmark::Counter::kIsRate);
  state.counters["of_f32"] = benchmark::Counter(
      operations * rounds * 1e-9 / peaks_of(threads).f32_gflops, benchmark::Counter::kIsRate);
}
BENCHMARK(run_prefill_attention)
    ->Name("attention_prefill_2010")
    ->ArgNames({"threads", "chunk"})
    ->ArgsProduct({{1, 2}, {128, 512}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

/// Norms, RoPE, SwiGLU, residual adds and KV stores of `rows` rows through 30 layers.
void run_elementwise(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(0));
  const int rows = static_cast<int>(state.range(1));
  CpuDevice& device = device_of(threads);
  const auto count = static_cast<std::size_t>(rows);
  std::vector<float> x = random_floats(count * 1536);
  const std::vector<float> weight(1536, 1.0F);
  std::vector<float> out(count * 1536);
  const std::vector<float> cosines(32 * 4096, 0.6F);
  const std::vector<float> sines(32 * 4096, 0.8F);
  std::vector<std::int32_t> positions(count);
  for (int i = 0; i < rows; ++i)
    positions[static_cast<std::size_t>(i)] = i;
  const RopeTable table{cosines.data(), sines.data(), 64, false};
  const KvMemory memory(rows / 16 + 1);
  std::vector<BlockId> blocks;
  for (BlockId id = 0; id <= rows / 16; ++id)
    blocks.push_back(id);
  const AttentionSequence sequence{blocks, 0, rows, 0};
  for (auto _ : state) {
    for (int layer = 0; layer < 30; ++layer) {
      rms_norm(device, x.data(), weight.data(), 1e-5F, rows, 576, out.data());
      rope(device, table, positions, 12, 64, out.data());
      store_kv(device, memory.kv, layer, {&sequence, 1}, out.data(), out.data());
      add_in_place(device, out.data(), x.data(), static_cast<std::int64_t>(count) * 576);
      rms_norm(device, x.data(), weight.data(), 1e-5F, rows, 576, out.data());
      swiglu(device, x.data(), x.data(), static_cast<std::int64_t>(count) * 1536, out.data());
      add_in_place(device, out.data(), x.data(), static_cast<std::int64_t>(count) * 576);
    }
  }
}
BENCHMARK(run_elementwise)
    ->Name("elementwise_30_layers")
    ->ArgNames({"threads", "rows"})
    ->ArgsProduct({{1, 2}, {1, 16, 128}})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

/// Packing of the whole model's Q4_1 linears and Q8_0 embedding.
void run_packing(benchmark::State& state) {
  ThreadPool& threads = device_of(static_cast<int>(state.range(0))).threads();
  const std::size_t q4_rows = 106'168'320 / 576;
  const std::vector<std::byte> q4(q4_rows * 18 * 20, std::byte{0x11});
  const std::vector<std::byte> q8(std::size_t{49152} * 18 * 34, std::byte{0x11});
  const auto rows = static_cast<std::int64_t>(q4_rows);
  std::vector<std::byte> out4(packed_bytes(Packing::kPanelQ4Scale16, rows, 576));
  std::vector<std::byte> out8(packed_bytes(Packing::kPanelQ8, 49152, 576));
  for (auto _ : state) {
    pack_matrix(checkpoint::DType::kQ4_1, q4, rows, 576, Packing::kPanelQ4Scale16, out4, threads)
        .value();
    pack_matrix(checkpoint::DType::kQ8_0, q8, 49152, 576, Packing::kPanelQ8, out8, threads).value();
  }
}
BENCHMARK(run_packing)
    ->Name("pack_135m")
    ->ArgName("threads")
    ->Arg(1)
    ->Arg(2)
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

void run_peaks(benchmark::State& state) {
  const int threads = static_cast<int>(state.range(0));
  Peaks peaks;
  for (auto _ : state)
    peaks = measure_peaks(threads);
  state.counters["int8_GOP/s"] = peaks.int8_gops;
  state.counters["f32_GFLOP/s"] = peaks.f32_gflops;
  state.counters["read_GB/s"] = peaks.read_gbs;
}
BENCHMARK(run_peaks)->Name("peaks")->ArgName("threads")->Arg(1)->Arg(2)->Iterations(1);

}  // namespace
}  // namespace thaw::bench

BENCHMARK_MAIN();
