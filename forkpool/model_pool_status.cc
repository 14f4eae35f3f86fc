// What ModelPool tells of itself.

#include <algorithm>

#include "forkpool/model_pool_impl.h"

namespace thaw::forkpool {
namespace {

const char* state_name(ModelSchedule::State state) {
  switch (state) {
    case ModelSchedule::State::kEmpty:
      return "empty";
    case ModelSchedule::State::kSwapping:
      return "swapping";
    case ModelSchedule::State::kServing:
      return "serving";
    case ModelSchedule::State::kClosing:
      return "closing";
  }
  return "";
}

void add_tier(TierStatus& sum, const TierStatus& one) {
  for (const auto field :
       {&TierStatus::entries, &TierStatus::bytes, &TierStatus::hits, &TierStatus::restored_bytes,
        &TierStatus::writes, &TierStatus::written_bytes, &TierStatus::evictions,
        &TierStatus::refused, &TierStatus::failures, &TierStatus::waiting})
    sum.*field += one.*field;
  sum.crossover_tokens = std::max(sum.crossover_tokens, one.crossover_tokens);
}

/// Slots share the directory, and the store, so what lies there counts once.
void add_shared(TierStatus& sum, const TierStatus& one) {
  const std::uint64_t entries = std::max(sum.entries, one.entries);
  const std::uint64_t bytes = std::max(sum.bytes, one.bytes);
  add_tier(sum, one);
  sum.entries = entries;
  sum.bytes = bytes;
}

/// What a pool that is gone had counted.
TierStatus only_counters(TierStatus status) {
  status.entries = status.bytes = status.waiting = status.crossover_tokens = 0;
  return status;
}

}  // namespace

/// So that what only grows does so over the pools that a slot had.
void ModelPool::Impl::keep_counters(std::size_t index, const PoolStatus& last) {
  PoolStatus& former = slots[index].former;
  former.workers.resize(options.workers_per_slot);
  for (const WorkerStatus& worker : last.workers)
    if (worker.worker < former.workers.size())
      add_counters(former.workers[worker.worker].stats, worker.stats);
  former.requests_retried += last.requests_retried;
  former.requests_resumed += last.requests_resumed;
  former.worker_deaths += last.worker_deaths;
  former.spawn_failures += last.spawn_failures;
  former.tokens_restored += last.tokens_restored;
  add_tier(former.arena, only_counters(last.arena));
  add_tier(former.files, only_counters(last.files));
  add_tier(former.store, only_counters(last.store));
}

PoolStatus ModelPool::Impl::status(Clock::TimePoint now) const {
  PoolStatus all;
  all.ready = was_ready && !draining;
  all.draining = draining;
  all.requests_running = entries.size();
  all.requests_suspended = num_suspended;
  all.uptime_seconds = std::chrono::duration<double>(now - began).count();
  for (std::size_t index = 0; index < slots.size(); ++index) {
    const Slot& slot = slots[index];
    const ModelSchedule::Slot& view = schedule.slots()[index];
    const PoolStatus own = slot.pool != nullptr ? slot.pool->status() : PoolStatus();
    all.requests_retried += own.requests_retried + slot.former.requests_retried;
    all.requests_resumed += own.requests_resumed + slot.former.requests_resumed;
    all.worker_deaths += own.worker_deaths + slot.former.worker_deaths;
    all.spawn_failures += own.spawn_failures + slot.former.spawn_failures;
    all.arena_bytes += own.arena_bytes;
    all.arena_used_bytes += own.arena_used_bytes;
    all.snapshots += own.snapshots;
    all.tokens_restored += own.tokens_restored + slot.former.tokens_restored;
    all.pins += own.pins;
    add_tier(all.arena, own.arena);
    add_tier(all.arena, slot.former.arena);
    add_shared(all.files, own.files);
    add_shared(all.files, slot.former.files);
    add_shared(all.store, own.store);
    add_shared(all.store, slot.former.store);
    for (std::uint32_t number = 0; number < options.workers_per_slot; ++number) {
      WorkerStatus worker;
      if (number < own.workers.size()) worker = own.workers[number];
      if (number < slot.former.workers.size())
        add_counters(worker.stats, slot.former.workers[number].stats);
      worker.worker = static_cast<std::uint32_t>(index) * options.workers_per_slot + number;
      worker.model = view.model;
      all.workers.push_back(std::move(worker));
    }
    SlotStatus& told = all.slots.emplace_back();
    told.slot = static_cast<std::uint32_t>(index);
    told.state = state_name(view.state);
    told.model = view.model;
    told.running = view.running;
    told.swaps = slot.swaps;
    told.last_swap_seconds = slot.last_swap_seconds;
    told.busy_seconds = slot.busy_seconds;
    if (slot.busy_since)
      told.busy_seconds += std::chrono::duration<double>(now - *slot.busy_since).count();
  }
  for (const auto& [name, model] : models) {
    ModelStatus& told = all.models.emplace_back();
    told.model = name;
    told.weight_bytes = model.spec->weights.size_bytes;
    told.waiting = model.waiting.size();
    told.requests = model.requests;
    told.loads = model.loads;
    told.load_seconds = model.load_seconds;
    told.load_failures = model.load_failures;
    told.failure = schedule.refusal(name, now).value_or("");
    if (!was_ready && all.failure.empty()) all.failure = told.failure;
  }
  return all;
}

}  // namespace thaw::forkpool
