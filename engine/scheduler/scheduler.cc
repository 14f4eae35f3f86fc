#include "engine/scheduler/scheduler.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <unordered_map>
#include <utility>

#include "engine/scheduler/scheduler_state.h"

namespace thaw::scheduler {
namespace {

/// Of the logits that prompt_logprobs take in one step.
constexpr std::size_t kMaxScoredBytes = std::size_t{16} << 20;

void check_options(const SchedulerOptions& options, const model::Model& model,
                   const kv::BlockPool& pool) {
  const auto refuse = [](const std::string& what) {
    throw Exception(make_error(Errc::kInvalidArgument, what));
  };
  if (options.num_blocks != 0 && options.num_blocks != pool.num_blocks()) {
    refuse("num_blocks is " + std::to_string(options.num_blocks) + ", the pool has " +
           std::to_string(pool.num_blocks()));
  }
  if (options.max_num_seqs == 0) refuse("max_num_seqs is 0; it must be at least 1");
  if (options.prefill_chunk_tokens == 0) refuse("prefill_chunk_tokens is 0; it must be at least 1");
  const auto most = static_cast<std::uint32_t>(model.config().max_positions);
  if (options.max_model_len > most) {
    refuse("max_model_len is " + std::to_string(options.max_model_len) +
           "; the model was made for at most " + std::to_string(most));
  }
}

}  // namespace

Scheduler::State::State(const SchedulerOptions& scheduler_options, model::Model& scheduler_model,
                        kv::RadixIndex& block_index, kv::BlockPool& block_pool,
                        const Clock& scheduler_clock, EventSink event_sink)
    : options(scheduler_options),
      model(scheduler_model),
      index(block_index),
      pool(block_pool),
      clock(scheduler_clock),
      sink(std::move(event_sink)),
      kv(block_pool, block_index, scheduler_model, stats) {
  check_options(options, model, pool);
  const std::size_t context = options.max_model_len != 0
                                  ? options.max_model_len
                                  : static_cast<std::size_t>(model.config().max_positions);
  max_tokens = static_cast<std::uint32_t>(std::min(context, pool.num_blocks() * kBlockSize));
  row_numbers.resize(options.prefill_chunk_tokens);
  std::iota(row_numbers.begin(), row_numbers.end(), 0);
  const auto row_bytes = static_cast<std::size_t>(model.config().vocab_size) * sizeof(float);
  max_scored = static_cast<std::uint32_t>(std::max<std::size_t>(1, kMaxScoredBytes / row_bytes));
  settle();
}

void Scheduler::State::settle() {
  ended.clear();
  stats.blocks_total = pool.num_blocks();
  stats.blocks_free = pool.num_free() + index.num_evictable();
  stats.running = running.size();
  stats.waiting = waiting.size() + preparing.size();
  stats.grammar_masks = masks.num_filled();
  stats.grammar_mask_us = masks.waited_us();
  if (options.grammars != nullptr) {
    const grammar::ServiceStats compiled = options.grammars->stats();
    stats.grammars_compiled = compiled.compiled;
    stats.grammar_cache_hits = compiled.cache_hits;
    stats.grammar_compile_us = compiled.compile_us;
  }
}

Result<void> Scheduler::State::check_rows_in_flight() const {
  std::unordered_map<const Sequence*, std::uint32_t> rows_of;
  for (const Step& step : in_flight) {
    for (const PlannedRows& rows : step.rows)
      rows_of[rows.sequence] += rows.num_rows;
  }
  rows_of.erase(nullptr);
  for (const Sequence* sequence : running) {
    const SequenceKv& blocks = sequence->kv;
    if (blocks.launched != blocks.computed + rows_of[sequence]) {
      return make_error(Errc::kInternal,
                        "scheduler: " + std::to_string(rows_of[sequence]) +
                            " rows of a sequence are in flight, between position " +
                            std::to_string(blocks.computed) + " and " +
                            std::to_string(blocks.launched));
    }
  }
  if (rows_of.size() <= running.size()) return {};
  return make_error(Errc::kInternal,
                    "scheduler: rows are in flight of a sequence that does not run");
}

Scheduler::Scheduler(const SchedulerOptions& options, model::Model& model, kv::RadixIndex& index,
                     kv::BlockPool& pool, const Clock& clock, EventSink sink)
    : state_(std::make_unique<State>(options, model, index, pool, clock, std::move(sink))) {}

Scheduler::~Scheduler() {
  for (Sequence* sequence : state_->running)
    state_->kv.release(sequence->kv);
}

Result<void> Scheduler::add(GenerateRequest request) {
  if (auto checked = state_->check(request); !checked) return checked;
  auto accepted = state_->accept(std::move(request));
  state_->settle();
  return accepted;
}

void Scheduler::cancel(RequestId request) {
  const auto found = state_->requests.find(request);
  if (found == state_->requests.end()) return;
  state_->cancel(*found->second);
  state_->settle();
}

void Scheduler::end_choice(RequestId request, std::uint32_t choice) {
  const auto found = state_->requests.find(request);
  if (found == state_->requests.end()) return;
  state_->end_choice(*found->second, choice);
  state_->settle();
}

bool Scheduler::has_work() const {
  return !state_->requests.empty() || !state_->in_flight.empty();
}

Result<void> Scheduler::step() {
  auto stepped = state_->run_step();
  state_->settle();
  return stepped;
}

const EngineStats& Scheduler::stats() const {
  return state_->stats;
}

Result<void> Scheduler::check_integrity() const {
  const State& state = *state_;
  if (auto checked = state.index.check_integrity(); !checked) return checked;
  if (auto checked = state.check_rows_in_flight(); !checked) return checked;
  if (has_work()) {
    const std::size_t obtainable = state.pool.num_free() + state.index.num_evictable();
    if (state.kv.num_reserved() <= obtainable) return {};
    return make_error(Errc::kInternal, "scheduler: " + std::to_string(state.kv.num_reserved()) +
                                           " blocks are reserved, " + std::to_string(obtainable) +
                                           " can be had");
  }
  const auto inconsistent = [](const std::string& what) {
    return make_error(Errc::kInternal, "scheduler: with no work left " + what);
  };
  if (!state.running.empty() || !state.waiting.empty() || !state.trunks.empty() ||
      !state.deadlines.empty()) {
    return inconsistent("sequences, trunks or deadlines are");
  }
  if (state.kv.num_reserved() != 0)
    return inconsistent(std::to_string(state.kv.num_reserved()) + " blocks are reserved");
  const std::size_t in_index = state.index.num_blocks();
  if (state.index.num_evictable() != in_index) {
    return inconsistent(std::to_string(in_index - state.index.num_evictable()) +
                        " blocks are locked in the index");
  }
  if (state.pool.num_free() + in_index != state.pool.num_blocks()) {
    return inconsistent(std::to_string(state.pool.num_free()) + " blocks are free and " +
                        std::to_string(in_index) + " in the index, of " +
                        std::to_string(state.pool.num_blocks()));
  }
  return {};
}

}  // namespace thaw::scheduler
