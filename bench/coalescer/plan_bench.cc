#include <random>

#include <benchmark/benchmark.h>

#include "coalescer/core/plan.h"

namespace thaw::coalescer {
namespace {

// `count` requests of 4,000 tokens: 16 families that share 3,900 tokens, a suffix each.
std::vector<GenerateRequest> window_of(int count) {
  std::mt19937 random(3);
  std::vector<std::vector<TokenId>> families(16);
  for (auto& family : families) {
    family.resize(3900);
    for (TokenId& token : family)
      token = static_cast<TokenId>(random() % 49152);
  }
  std::vector<GenerateRequest> requests(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < requests.size(); ++i) {
    requests[i].id = i + 1;
    requests[i].prompt = families[i % families.size()];
    for (int j = 0; j < 100; ++j) {
      requests[i].prompt.push_back(static_cast<TokenId>(random() % 49152));
    }
  }
  return requests;
}

void BM_MakePlan(benchmark::State& state) {
  const std::vector<GenerateRequest> requests = window_of(static_cast<int>(state.range(0)));
  for (auto _ : state) {
    state.PauseTiming();
    std::vector<GenerateRequest> copy = requests;
    state.ResumeTiming();
    ForkPlan plan = make_plan(std::move(copy));
    benchmark::DoNotOptimize(plan);
    state.PauseTiming();
    plan = {};
    state.ResumeTiming();
  }
  state.SetItemsProcessed(state.iterations() * state.range(0) * 4000);
}
BENCHMARK(BM_MakePlan)->Arg(8)->Arg(256)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace thaw::coalescer

BENCHMARK_MAIN();
