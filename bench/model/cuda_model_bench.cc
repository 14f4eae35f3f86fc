// The decoder on a GPU with random weights of an 8B Llama's shape: what a decode step, a prefill
// and a first token on a cached trunk take, host work included, and which operations the time goes
// to. The ceilings of the same machine: thaw_cuda_ops_bench.

#include <algorithm>
#include <chrono>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "engine/cuda/buffer.h"
#include "engine/cuda/check.h"
#include "engine/model/cuda/cuda_model.h"
#include "engine/model/cuda/device_image.h"
#include "engine/model/cuda/random_image.h"
#include "engine/ops/cuda/device.h"

namespace thaw::model {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kTrunk = 4000;
constexpr int kMaxSequences = 64;
constexpr int kBlocksPerBranch = 16;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// The model, made once, and a trunk of kTrunk tokens in its cache.
class Bench {
 public:
  static Bench& get() {
    static Bench bench;
    return bench;
  }

  std::vector<BlockId> trunk_table() const {
    std::vector<BlockId> table(kTrunk / kBlockSize);
    for (std::size_t i = 0; i < table.size(); ++i)
      table[i] = static_cast<BlockId>(i);
    return table;
  }
  /// The table of branch `index`: `shared` blocks of the trunk, then its own.
  std::vector<BlockId> branch_table(int index, int shared) const {
    std::vector<BlockId> table = trunk_table();
    table.resize(static_cast<std::size_t>(shared));
    for (int i = 0; i < kBlocksPerBranch; ++i)
      table.push_back(kTrunk / kBlockSize + index * kBlocksPerBranch + i);
    return table;
  }
  /// Launches and waits.
  void step(const Batch& batch) {
    const StepHandle handle = model->launch(batch).value();
    benchmark::DoNotOptimize(model->collect(handle).value().drawn.data());
  }

  std::unique_ptr<ops::CudaDevice> device = ops::CudaDevice::create(0).value();
  cuda::Stream stream;
  RandomImage image = make_random_image(llama_8b_config(), 1, 0.02F, 0, stream).value();
  cuda::DeviceBuffer<std::byte> kv;
  std::unique_ptr<CudaModel> model;
  std::vector<TokenId> tokens;
  const std::vector<int> first_row = {0};

 private:
  Bench() {
    const ModelConfig config = llama_8b_config();
    const std::size_t blocks = kTrunk / kBlockSize + 16 + kMaxSequences * kBlocksPerBranch;
    kv = {blocks * kv_block_bytes(config, ops::KvDType::kBF16), stream};
    CudaModelOptions options;
    options.max_positions = 16384;
    options.max_rows = 4352;
    options.max_sequences = kMaxSequences;
    model = make_cuda_model(*device, *image.view, image.weights.span(), kv, options).value();
    std::mt19937 random(1);
    for (int i = 0; i < kTrunk + 512; ++i)
      tokens.push_back(static_cast<TokenId>(random() % 128256));
    step({{{std::span(tokens).first(kTrunk), 0, trunk_table(), {}}}});
  }
};

/// Decode with two steps in flight: `rows` sequences, `shared` blocks of the trunk each.
class Decode {
 public:
  Decode(int rows, int shared) : rows_(rows), start_(shared * kBlockSize) {
    for (int i = 0; i < rows; ++i)
      tables_.push_back(bench_.branch_table(i, shared));
    drawn_ = bench_.model->launch(batch(true)).value();
    bench_.model->collect(drawn_).value();
  }
  /// Seconds a step, of `steps`.
  double run(int steps) {
    const auto started = Clock::now();
    StepHandle flying = launch();
    for (int i = 1; i < steps; ++i) {
      const StepHandle next = launch();
      bench_.model->collect(flying).value();
      flying = next;
    }
    bench_.model->collect(flying).value();
    return seconds_since(started) / steps;
  }
  /// One step by itself.
  void single() { bench_.model->collect(launch()).value(); }

 private:
  StepHandle launch() { return drawn_ = bench_.model->launch(batch(false)).value(); }
  Batch batch(bool is_first) {
    Batch batch;
    position_ = is_first || position_ + 1 >= start_ + kBlocksPerBranch * kBlockSize ? start_
                                                                                    : position_ + 1;
    for (int i = 0; i < rows_; ++i) {
      batch.sequences.push_back({std::span(bench_.tokens).subspan(static_cast<std::size_t>(i), 1),
                                 position_, tables_[static_cast<std::size_t>(i)],
                                 bench_.first_row});
      batch.sequences.back().draw = DeviceDraw{};
      if (!is_first) batch.sequences.back().first_token = DrawnToken{drawn_, i};
    }
    return batch;
  }

  Bench& bench_ = Bench::get();
  int rows_;
  int start_;
  int position_ = 0;
  std::vector<std::vector<BlockId>> tables_;
  StepHandle drawn_ = 0;
};

/// Runs `work` once with an event after every operation, and reports milliseconds by kind. The
/// events keep kernels from overlapping, so the sum is more than a step takes.
template <typename Work>
void break_down(benchmark::State& state, Work work) {
  static constexpr const char* kNames[] = {"ids",  "embed", "norm",    "qkv",  "rope",
                                           "attn", "o",     "gateup",  "down", "gather",
                                           "head", "draw",  "exchange"};
  CudaModel& model = *Bench::get().model;
  std::vector<StepPart> parts;
  std::vector<cuda::Event> events;
  events.reserve(1024);
  double sums[std::size(kNames)] = {};
  constexpr int kRepeats = 3;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    parts.clear();
    events.clear();
    model.set_probe([&](StepPart part) {
      parts.push_back(part);
      events.emplace_back(cuda::Event::Timing::kOn);
      events.back().record(model.stream());
    });
    work();
    model.set_probe({});
    for (std::size_t i = 1; i < parts.size(); ++i)
      sums[static_cast<int>(parts[i])] +=
          static_cast<double>(events[i].milliseconds_since(events[i - 1])) / kRepeats;
  }
  for (std::size_t i = 0; i < std::size(kNames); ++i)
    if (sums[i] > 0) state.counters[std::string(kNames[i]) + "_ms"] = sums[i];
}

void decode(benchmark::State& state) {
  const int rows = static_cast<int>(state.range(0));
  const int shared = static_cast<int>(state.range(1)) / kBlockSize;
  Decode decode(rows, shared);
  decode.run(8);
  for (auto _ : state)
    state.SetIterationTime(decode.run(32));
  break_down(state, [&] { decode.single(); });
}

void prefill(benchmark::State& state) {
  Bench& bench = Bench::get();
  const int count = static_cast<int>(state.range(0));
  std::vector<BlockId> table;
  for (int i = 0; i * kBlockSize < count; ++i)
    table.push_back(kTrunk / kBlockSize + i);
  const std::vector<int> last = {count - 1};
  Batch batch{{{std::span(bench.tokens).first(static_cast<std::size_t>(count)), 0, table, last}}};
  batch.sequences[0].draw = DeviceDraw{};
  bench.step(batch);
  for (auto _ : state) {
    const auto started = Clock::now();
    bench.step(batch);
    state.SetIterationTime(seconds_since(started));
  }
  break_down(state, [&] { bench.step(batch); });
}

/// `count` new tokens behind a cached trunk.
void first_token(benchmark::State& state) {
  Bench& bench = Bench::get();
  const int count = static_cast<int>(state.range(0));
  const std::vector<BlockId> table = bench.branch_table(0, kTrunk / kBlockSize);
  const std::vector<int> last = {count - 1};
  Batch batch{{{std::span(bench.tokens).subspan(kTrunk, static_cast<std::size_t>(count)), kTrunk,
                table, last}}};
  batch.sequences[0].draw = DeviceDraw{};
  bench.step(batch);
  for (auto _ : state) {
    const auto started = Clock::now();
    bench.step(batch);
    state.SetIterationTime(seconds_since(started));
  }
  break_down(state, [&] { bench.step(batch); });
}

/// The host's part of a decode step: everything that launch() does.
void launch_on_host(benchmark::State& state) {
  Bench& bench = Bench::get();
  const int rows = static_cast<int>(state.range(0));
  Batch batch;
  std::vector<std::vector<BlockId>> tables;
  for (int i = 0; i < rows; ++i)
    tables.push_back(bench.branch_table(i, kTrunk / kBlockSize));
  for (int i = 0; i < rows; ++i) {
    batch.sequences.push_back({std::span(bench.tokens).subspan(0, 1), kTrunk,
                               tables[static_cast<std::size_t>(i)], bench.first_row});
    batch.sequences.back().draw = DeviceDraw{};
  }
  for (auto _ : state) {
    const auto started = Clock::now();
    const StepHandle handle = bench.model->launch(batch).value();
    state.SetIterationTime(seconds_since(started));
    bench.model->collect(handle).value();
  }
}

void digest(benchmark::State& state) {
  Bench& bench = Bench::get();
  for (auto _ : state) {
    const auto started = Clock::now();
    benchmark::DoNotOptimize(
        device_digests(bench.image.weights.span(), bench.stream).value().chunks.data());
    state.SetIterationTime(seconds_since(started));
  }
  state.SetBytesProcessed(state.iterations() *
                          static_cast<std::int64_t>(bench.image.weights.size()));
}

/// A memfd of 4 GiB, resident, to the device.
void upload(benchmark::State& state) {
  constexpr std::size_t kBytes = std::size_t{4} << 30;
  const cuda::Stream stream;
  const cuda::DeviceBuffer<std::byte> device(kBytes, stream);
  stream.synchronize();
  const UniqueFd fd = create_memfd("thaw-bench-image", kBytes).value();
  {
    const Mapping memory = map_fd(fd.get(), kBytes, MapAccess::kReadWrite).value();
    for (std::size_t at = 0; at < kBytes; at += 4096)
      memory.data()[at] = std::byte{1};
  }
  UploadOptions options;
  options.readers = static_cast<int>(state.range(0));
  options.slot_bytes = static_cast<std::size_t>(state.range(1)) << 10;
  for (auto _ : state) {
    const UploadReport report = upload_image(fd.get(), device, options).value();
    state.SetIterationTime(std::chrono::duration<double>(report.elapsed).count());
    state.counters["pinning_ms"] =
        std::chrono::duration<double, std::milli>(report.pinning).count();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<std::int64_t>(kBytes));
}

BENCHMARK(decode)
    ->ArgNames({"rows", "trunk"})
    ->ArgsProduct({{1, 4, 8, 16, 32, 64}, {0, kTrunk}})
    ->Unit(benchmark::kMillisecond)
    ->UseManualTime()
    ->Iterations(5);
BENCHMARK(prefill)
    ->ArgName("tokens")
    ->Args({128})
    ->Args({512})
    ->Args({2048})
    ->Args({4001})
    ->Unit(benchmark::kMillisecond)
    ->UseManualTime()
    ->Iterations(7);
BENCHMARK(first_token)
    ->ArgName("new")
    ->Args({20})
    ->Args({100})
    ->Args({250})
    ->Unit(benchmark::kMillisecond)
    ->UseManualTime()
    ->Iterations(15);
BENCHMARK(launch_on_host)
    ->ArgName("rows")
    ->Args({1})
    ->Args({16})
    ->Args({64})
    ->Unit(benchmark::kMicrosecond)
    ->UseManualTime()
    ->Iterations(20);
BENCHMARK(digest)->Unit(benchmark::kMillisecond)->UseManualTime()->Iterations(7);
BENCHMARK(upload)
    ->ArgNames({"readers", "slot_kib"})
    ->ArgsProduct({{6, 8, 12, 16}, {1024, 2048, 4096}})
    ->Unit(benchmark::kMillisecond)
    ->UseManualTime()
    ->Iterations(3);

}  // namespace
}  // namespace thaw::model

BENCHMARK_MAIN();
