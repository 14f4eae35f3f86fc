// One sampled token over a vocabulary of 49,152.

#include <random>

#include <benchmark/benchmark.h>

#include "engine/sampling/sampler.h"

namespace thaw::sampling {
namespace {

std::vector<float> make_logits(float spread) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0F, spread);
  std::vector<float> logits(49152);
  for (float& logit : logits)
    logit = normal(random);
  return logits;
}

void sample_with(benchmark::State& state, const SamplingParams& params) {
  const auto logits = make_logits(3.0F);
  std::vector<TokenId> tokens(2000, 7);
  Sampler sampler;
  SamplingParams seeded = params;
  for (auto _ : state) {
    ++seeded.seed;
    benchmark::DoNotOptimize(sampler.sample(logits, seeded, {tokens, 1900, 0, {}}));
  }
}

SamplingParams with(float temperature, std::int32_t top_k, float top_p, float min_p,
                    float repetition, std::int32_t top_logprobs) {
  SamplingParams params;
  params.temperature = temperature;
  params.top_k = top_k;
  params.top_p = top_p;
  params.min_p = min_p;
  params.repetition_penalty = repetition;
  params.top_logprobs = top_logprobs;
  return params;
}

BENCHMARK_CAPTURE(sample_with, greedy, with(0.0F, 0, 1.0F, 0.0F, 1.0F, -1));
BENCHMARK_CAPTURE(sample_with, greedy_penalised, with(0.0F, 0, 1.0F, 0.0F, 1.1F, -1));
BENCHMARK_CAPTURE(sample_with, temperature, with(1.0F, 0, 1.0F, 0.0F, 1.0F, -1));
BENCHMARK_CAPTURE(sample_with, top_k, with(0.8F, 40, 1.0F, 0.0F, 1.0F, -1));
BENCHMARK_CAPTURE(sample_with, top_p, with(1.0F, 0, 0.95F, 0.0F, 1.0F, -1));
BENCHMARK_CAPTURE(sample_with, min_p, with(1.0F, 0, 1.0F, 0.05F, 1.0F, -1));
BENCHMARK_CAPTURE(sample_with, top_k_top_p, with(0.8F, 40, 0.95F, 0.0F, 1.0F, -1));
BENCHMARK_CAPTURE(sample_with, greedy_logprobs, with(0.0F, 0, 1.0F, 0.0F, 1.0F, 5));

}  // namespace
}  // namespace thaw::sampling

BENCHMARK_MAIN();
