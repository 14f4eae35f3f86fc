#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
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
inline constexpr int kSteps = 160;
inline constexpr std::size_t kNumBlocks = 512;

/// JSON of a schema that never ends: an array of objects.
inline std::string endless_document() {
  return R"({"type":"structural_tag","format":{"type":"json_schema","json_schema":{"type":"array",)"
         R"("items":{"type":"object","properties":{"name":{"type":"string","maxLength":24},)"
         R"("size":{"type":"integer"},"ratio":{"type":"number"},"kind":{"enum":["red","green",null]},)"
         R"("tags":{"type":"array","items":{"type":"string"},"maxItems":3}},)"
         R"("required":["name","size","ratio","kind","tags"]}}}})";
}

/// Decode steps of kRows sequences, of which `num_constrained` have a grammar. The items are
/// tokens.
inline void decode_rows(benchmark::State& state, model::Model& model, grammar::Service& grammars,
                        int num_constrained) {
  for (auto _ : state) {
    state.PauseTiming();
    kv::BlockPool pool(kNumBlocks);
    kv::RadixIndex index(pool);
    const SteadyClock clock;
    SchedulerOptions options;
    options.grammars = &grammars;
    options.max_num_seqs = kRows;
    std::uint64_t num_tokens = 0;
    std::string failure;
    auto scheduler = std::make_unique<Scheduler>(
        options, model, index, pool, clock, [&](const GenerateEvent& event) {
          num_tokens += std::holds_alternative<TokenEvent>(event) ? 1 : 0;
          if (const auto* failed = std::get_if<FailedEvent>(&event))
            failure = failed->error.message;
        });
    for (int row = 0; row < kRows; ++row) {
      GenerateRequest request;
      request.id = static_cast<RequestId>(row) + 1;
      for (int i = 0; i < kPromptTokens; ++i)
        request.prompt.push_back(static_cast<TokenId>(100 + (row * 31 + i * 7) % 900));
      request.sampling.max_tokens = kSteps + 8;
      request.sampling.seed = static_cast<std::uint64_t>(row);
      request.sampling.ignore_eos = true;
      if (row < num_constrained) request.grammar = endless_document();
      scheduler->add(std::move(request)).value();
    }
    // Until every row decodes.
    while (num_tokens < kRows * 8 && failure.empty())
      scheduler->step().value();
    const std::uint64_t steps = scheduler->stats().steps;
    state.ResumeTiming();
    while (scheduler->stats().steps < steps + kSteps - 16 && failure.empty())
      scheduler->step().value();
    state.PauseTiming();
    if (!failure.empty()) state.SkipWithError(failure.c_str());
    for (int row = 0; row < kRows; ++row)
      scheduler->cancel(static_cast<RequestId>(row) + 1);
    while (scheduler->has_work())
      scheduler->step().value();
    state.counters["mask_us_per_step"] =
        static_cast<double>(scheduler->stats().grammar_mask_us) / kSteps;
    scheduler.reset();
    state.ResumeTiming();
  }
  state.SetItemsProcessed(static_cast<std::int64_t>(state.iterations()) * kRows * (kSteps - 16));
}

inline void register_rows(const char* name, model::Model& model, grammar::Service& grammars,
                          int num_constrained, int repetitions) {
  benchmark::RegisterBenchmark(name,
                               [&model, &grammars, num_constrained](benchmark::State& state) {
                                 decode_rows(state, model, grammars, num_constrained);
                               })
      ->Iterations(1)
      ->Repetitions(repetitions)
      ->ReportAggregatesOnly(true)
      ->UseRealTime()
      ->Unit(benchmark::kMillisecond);
}

/// Runs the benches of eight rows, none of them, four and all constrained, and none again.
inline void run_rows(int argc, char** argv, model::Model& model, grammar::Service& grammars,
                     int repetitions) {
  for (const auto& [name, rows] : {std::pair{"decode_8_free", 0},
                                   {"decode_8_half", 4},
                                   {"decode_8_constrained", 8},
                                   {"decode_8_free_again", 0}})
    register_rows(name, model, grammars, rows, repetitions);
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}

}  // namespace thaw::scheduler
