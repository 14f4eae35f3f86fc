#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <benchmark/benchmark.h>

#include "engine/base/clock.h"
#include "engine/checkpoint/gguf.h"
#include "engine/grammar/service.h"
#include "engine/scheduler/scheduler.h"
#include "engine/text/tokenizer.h"

namespace thaw::scheduler {

inline constexpr int kRows = 8;
inline constexpr int kPromptTokens = 200;
inline constexpr int kSteps = 144;
inline constexpr std::size_t kNumBlocks = 512;

/// JSON of a schema that never ends: an array of objects.
inline std::string endless_document() {
  return R"({"type":"structural_tag","format":{"type":"json_schema","json_schema":{"type":"array",)"
         R"("items":{"type":"object","properties":{"name":{"type":"string","maxLength":24},)"
         R"("size":{"type":"integer"},"ratio":{"type":"number"},"kind":{"enum":["red","green",null]},)"
         R"("tags":{"type":"array","items":{"type":"string"},"maxItems":3}},)"
         R"("required":["name","size","ratio","kind","tags"]}}}})";
}

struct DecodedRows {
  double step_ms = 0;
  double mask_wait_us = 0;  ///< that a step waited for masks
};

/// kSteps decode steps of kRows sequences, of which `num_constrained` have a grammar. Throws where
/// one fails.
inline DecodedRows decode_rows(model::Model& model, grammar::Service& grammars,
                               int num_constrained) {
  constexpr int kWarmTokens = 8;
  kv::BlockPool pool(kNumBlocks);
  kv::RadixIndex index(pool);
  const SteadyClock clock;
  SchedulerOptions options;
  options.grammars = &grammars;
  options.max_num_seqs = kRows;
  std::uint64_t num_tokens = 0;
  Scheduler scheduler(options, model, index, pool, clock, [&](const GenerateEvent& event) {
    num_tokens += std::holds_alternative<TokenEvent>(event) ? 1 : 0;
    if (const auto* failed = std::get_if<FailedEvent>(&event))
      throw std::runtime_error(failed->error.message);
  });
  for (int row = 0; row < kRows; ++row) {
    GenerateRequest request;
    request.id = static_cast<RequestId>(row) + 1;
    for (int i = 0; i < kPromptTokens; ++i)
      request.prompt.push_back(static_cast<TokenId>(100 + (row * 31 + i * 7) % 150));
    request.sampling.max_tokens = kSteps + 4 * kWarmTokens;
    request.sampling.seed = static_cast<std::uint64_t>(row);
    request.sampling.ignore_eos = true;
    if (row < num_constrained) request.grammar = endless_document();
    scheduler.add(std::move(request)).value();
  }
  // Until every row decodes.
  while (num_tokens < kRows * kWarmTokens)
    scheduler.step().value();
  const EngineStats before = scheduler.stats();
  const auto started = std::chrono::steady_clock::now();
  while (scheduler.stats().steps < before.steps + kSteps)
    scheduler.step().value();
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - started;
  const std::uint64_t waited = scheduler.stats().grammar_mask_us - before.grammar_mask_us;
  for (int row = 0; row < kRows; ++row)
    scheduler.cancel(static_cast<RequestId>(row) + 1);
  while (scheduler.has_work())
    scheduler.step().value();
  return {took.count() / kSteps, static_cast<double>(waited) / kSteps};
}

inline double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

/// Rounds of eight rows: none of them, four and all constrained, and none again, one after the
/// other, so that all four see the same machine. Each counter is a median over the rounds, and each
/// ratio one of ratios within a round; free_again_over_free says how much is noise.
inline void compare_rows(benchmark::State& state, model::Model& model, grammar::Service& grammars,
                         int rounds) {
  constexpr std::array kCases = {std::pair{"free", 0}, std::pair{"half", kRows / 2},
                                 std::pair{"constrained", kRows}, std::pair{"free_again", 0}};
  std::array<std::vector<double>, kCases.size()> steps;
  std::array<std::vector<double>, kCases.size()> ratios;
  std::vector<double> waits;
  for (auto _ : state) {
    decode_rows(model, grammars, kRows);  // compiles the grammar
    for (int round = 0; round < rounds; ++round) {
      for (std::size_t i = 0; i < kCases.size(); ++i) {
        const DecodedRows decoded = decode_rows(model, grammars, kCases[i].second);
        steps[i].push_back(decoded.step_ms);
        ratios[i].push_back(decoded.step_ms / steps[0].back());
        if (kCases[i].second == kRows) waits.push_back(decoded.mask_wait_us);
      }
    }
  }
  for (std::size_t i = 0; i < kCases.size(); ++i) {
    const std::string name = kCases[i].first;
    state.counters[name + "_step_ms"] = median(steps[i]);
    if (i > 0) state.counters[name + "_over_free"] = median(ratios[i]);
  }
  state.counters["constrained_over_free_min"] = std::ranges::min(ratios[2]);
  state.counters["constrained_over_free_max"] = std::ranges::max(ratios[2]);
  state.counters["mask_wait_us_per_step"] = median(waits);
  state.counters["rounds"] = rounds;
}

/// The whole program.
inline int run_rows(int argc, char** argv, model::Model& model, grammar::Service& grammars,
                    int rounds) {
  benchmark::RegisterBenchmark(
      "decode_8", [&](benchmark::State& state) { compare_rows(state, model, grammars, rounds); })
      ->Iterations(1)
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace thaw::scheduler
