// What the scheduler itself costs a decode step: planning, accounting and the events of n sequences
// that share a trunk of 4,096 tokens, over a model that does nothing.

#include <atomic>
#include <cstdlib>
#include <new>

#include <benchmark/benchmark.h>

#include "engine/scheduler/scheduler.h"

namespace {
std::atomic<std::uint64_t> num_allocations{0};
}  // namespace

// Not inlined: GCC would see free() of what came from a new it did not look into.
[[gnu::noinline]] void* operator new(std::size_t size) {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
// Libraries use it too, and what it gives comes back to the deletes below.
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(size);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace thaw::scheduler {
namespace {

constexpr std::size_t kTrunkTokens = 4096;
constexpr std::size_t kNumBlocks = 1 << 16;

/// Draws another token in each step, the same for all sequences.
class IdleModel final : public model::Model {
 public:
  explicit IdleModel(int max_in_flight) : max_in_flight_(max_in_flight) {
    config_.vocab_size = 128256;
    config_.max_positions = 1 << 20;
  }
  const model::ModelConfig& config() const override { return config_; }
  const model::KvView& kv() const override { return kv_; }
  int max_in_flight() const override { return max_in_flight_; }
  bool can_draw(const SamplingParams&) const override { return true; }
  Result<model::StepHandle> launch(const model::Batch& batch) override {
    drawn_.assign(batch.sequences.size(), static_cast<TokenId>(next_ % 100000));
    return next_++;
  }
  Result<model::StepOutput> collect(model::StepHandle) override {
    return model::StepOutput{{}, 0, config_.vocab_size, drawn_};
  }
  Result<void> copy_block(BlockId, BlockId) override { return {}; }

 private:
  int max_in_flight_;
  model::ModelConfig config_;
  model::KvView kv_;
  std::vector<TokenId> drawn_;
  model::StepHandle next_ = 0;
};

void decode_step(benchmark::State& state) {
  const auto num_sequences = static_cast<std::uint64_t>(state.range(0));
  IdleModel model(static_cast<int>(state.range(1)));
  kv::BlockPool pool(kNumBlocks);
  kv::RadixIndex index(pool);
  SteadyClock clock;
  std::uint64_t num_tokens = 0;
  Scheduler scheduler({}, model, index, pool, clock,
                      [&num_tokens](const GenerateEvent&) { ++num_tokens; });
  const auto begin = [&] {
    for (RequestId id = 1; id <= num_sequences; ++id) {
      GenerateRequest request;
      request.id = id;
      request.prompt.assign(kTrunkTokens, 7);
      for (std::uint64_t i = 0; i < 24; ++i)
        request.prompt.push_back(static_cast<TokenId>(100 + id));
      request.sampling.max_tokens = 1 << 19;
      request.sampling.ignore_eos = true;
      (void)scheduler.add(std::move(request));
    }
    while (scheduler.stats().tokens_decoded < 40 * num_sequences)
      (void)scheduler.step();
  };
  const auto end = [&] {
    for (RequestId id = 1; id <= num_sequences; ++id)
      scheduler.cancel(id);
    while (scheduler.has_work())
      (void)scheduler.step();
  };
  begin();
  std::uint64_t allocations = 0;
  std::uint64_t quiet_steps = 0;
  std::uint64_t steps = 0;
  for (auto _ : state) {
    const std::uint64_t before = num_allocations;
    (void)scheduler.step();
    allocations += num_allocations - before;
    quiet_steps += num_allocations == before ? 1 : 0;
    if (++steps % 2048 != 0) continue;
    state.PauseTiming();  // trunks do not grow without end
    end();
    begin();
    state.ResumeTiming();
  }
  state.counters["allocations"] =
      benchmark::Counter(static_cast<double>(allocations), benchmark::Counter::kAvgIterations);
  state.counters["steps_without"] =
      static_cast<double>(quiet_steps) / static_cast<double>(state.iterations());
  end();
}
BENCHMARK(decode_step)
    ->ArgNames({"sequences", "in_flight"})
    ->ArgsProduct({{1, 16, 64}, {1, 2}})
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace thaw::scheduler

BENCHMARK_MAIN();
