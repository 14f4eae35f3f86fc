// Prefill and decode of the default model (`make model`): tokens a second, without scheduler or
// sampling. THAW_BENCH_THREADS overrides the number of threads (default: 2).

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "engine/base/memory_map.h"
#include "engine/checkpoint/gguf.h"
#include "engine/model/load.h"
#include "engine/model/model.h"

namespace thaw::model {
namespace {

constexpr int kContextTokens = 2000;
constexpr int kChunkTokens = 128;
constexpr int kNumBlocks = 400;

std::string default_model() {
  const char* cache = std::getenv("THAW_CACHE_DIR");
  const char* home = std::getenv("HOME");
  const std::string directory = cache != nullptr && *cache != '\0'
                                    ? cache
                                    : std::string(home != nullptr ? home : "") + "/.cache/thaw";
  return directory + "/models/SmolLM2-135M-Instruct.Q4_1.gguf";
}

ModelSource default_source() {
  return model_source_from_gguf(std::make_shared<const checkpoint::GgufFile>(
                                    checkpoint::GgufFile::open(default_model()).value()))
      .value();
}

int num_threads() {
  const char* text = std::getenv("THAW_BENCH_THREADS");
  return text != nullptr ? std::max(1, std::atoi(text)) : 2;
}

/// The model, loaded once for all benches.
class LoadedModel {
 public:
  static LoadedModel& instance() {
    static LoadedModel loaded;
    return loaded;
  }

  Model& model() { return *model_; }

  /// Tokens at positions first ... of one sequence; only the last row wants logits, and only if
  /// `wants_logits`.
  void run(std::span<const TokenId> tokens, int first, std::span<const BlockId> table,
           bool wants_logits) {
    const int last = static_cast<int>(tokens.size()) - 1;
    const std::span<const int> rows(&last, wants_logits ? 1 : 0);
    step({{{tokens, first, table, rows}}});
  }

  void step(const Batch& batch) {
    const StepHandle handle = model_->launch(batch).value();
    benchmark::DoNotOptimize(model_->collect(handle).value().values.data());
  }

  void prefill(int num_tokens, std::span<const BlockId> table) {
    const std::vector<TokenId> tokens = text(num_tokens);
    for (int start = 0; start < num_tokens; start += kChunkTokens) {
      const int count = std::min(kChunkTokens, num_tokens - start);
      run(std::span(tokens).subspan(static_cast<std::size_t>(start),
                                    static_cast<std::size_t>(count)),
          start, table, start + count == num_tokens);
    }
  }

  std::vector<TokenId> text(int num_tokens) const {
    std::vector<TokenId> tokens;
    for (int i = 0; i < num_tokens; ++i)
      tokens.push_back(static_cast<TokenId>((7919LL * i + 13) % model_->config().vocab_size));
    return tokens;
  }

 private:
  LoadedModel() {
    device_ = ops::CpuDevice::create(num_threads()).value();
    const LoadedImage loaded =
        build_image(default_source(), {ops::ComputeMode::kNative}, device_->threads()).value();
    memory_ = map_fd(loaded.fd.get(), loaded.size_bytes, MapAccess::kReadOnly).value();
    const auto image = checkpoint::WeightImageView::open(memory_.bytes()).value();
    kv_.resize(kv_block_bytes(loaded.config, ops::KvDType::kBF16) * kNumBlocks);
    model_ = make_model(*device_, image, kv_, {}).value();
  }

  std::unique_ptr<ops::CpuDevice> device_;
  Mapping memory_;
  std::vector<std::byte> kv_;
  std::unique_ptr<Model> model_;
};

std::vector<BlockId> blocks(int first, int num_tokens) {
  std::vector<BlockId> table;
  for (int i = 0; i < (num_tokens + kBlockSize - 1) / kBlockSize; ++i)
    table.push_back(first + i);
  return table;
}

void load(benchmark::State& state) {
  const ModelSource source = default_source();
  ThreadPool threads(num_threads());
  for (auto _ : state)
    benchmark::DoNotOptimize(
        build_image(source, {ops::ComputeMode::kNative}, threads).value().digest);
}
BENCHMARK(load)->Unit(benchmark::kMillisecond)->UseRealTime();

void prefill(benchmark::State& state) {
  LoadedModel& loaded = LoadedModel::instance();
  const int num_tokens = static_cast<int>(state.range(0));
  const auto table = blocks(0, num_tokens);
  for (auto _ : state)
    loaded.prefill(num_tokens, table);
  state.SetItemsProcessed(state.iterations() * num_tokens);
}
BENCHMARK(prefill)->Arg(512)->Arg(2010)->Unit(benchmark::kMillisecond)->UseRealTime();

/// One step of `batch` sequences: on one shared trunk of `context` tokens, each with a block of its
/// own after it.
void decode(benchmark::State& state) {
  LoadedModel& loaded = LoadedModel::instance();
  const int batch_size = static_cast<int>(state.range(0));
  const int context = static_cast<int>(state.range(1));
  const auto trunk = blocks(0, context);
  loaded.prefill(context, trunk);
  const std::vector<TokenId> tokens = loaded.text(batch_size);
  const std::vector<int> only = {0};
  std::vector<std::vector<BlockId>> tables;
  Batch batch;
  for (int i = 0; i < batch_size; ++i) {
    tables.push_back(trunk);
    tables.back().push_back(static_cast<BlockId>(trunk.size()) + i);
  }
  for (int i = 0; i < batch_size; ++i) {
    batch.sequences.push_back(
        {std::span(tokens).subspan(static_cast<std::size_t>(i), 1), context, tables[i], only});
  }
  for (auto _ : state)
    loaded.step(batch);
  state.SetItemsProcessed(state.iterations() * batch_size);
}
BENCHMARK(decode)
    ->ArgNames({"batch", "context"})
    ->Args({1, 64})
    ->Args({1, kContextTokens})
    ->Args({4, kContextTokens})
    ->Args({16, kContextTokens})
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();

}  // namespace
}  // namespace thaw::model

int main(int argc, char** argv) {
  try {
    benchmark::Initialize(&argc, argv);
    benchmark::AddCustomContext("model", "SmolLM2-135M-Instruct.Q4_1.gguf");
    benchmark::AddCustomContext("threads", std::to_string(thaw::model::num_threads()));
    benchmark::RunSpecifiedBenchmarks();
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "%s (the default model comes with `make model`)\n", failure.what());
    return 1;
  }
}
