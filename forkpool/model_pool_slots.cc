// The half of ModelPool that gives slots to models.

#include <algorithm>
#include <functional>
#include <utility>

#include "engine/base/log.h"
#include "forkpool/model_pool_impl.h"

namespace thaw::forkpool {
namespace {

/// For workers that have nothing to do any more, or were told to cancel what they have; those that
/// take longer are killed.
constexpr std::chrono::milliseconds kStopDeadline{1000};
/// The planner looks around at least so often: bounds what a lost wake-up could cost.
constexpr std::chrono::seconds kLongestSleep{5};

double seconds_between(Clock::TimePoint from, Clock::TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

void ModelPool::Impl::replan(Clock::TimePoint now) {
  if (stopping) return;
  fail_expired(now);
  for (std::size_t slot = 0; slot < slots.size(); ++slot) {
    const bool late = schedule.slots()[slot].state == ModelSchedule::State::kSwapping &&
                      slots[slot].pool != nullptr && slots[slot].failure.empty() &&
                      now >= slots[slot].swap_began + options.swap_deadline;
    if (!late) continue;
    slots[slot].failure =
        "was not ready within " + std::to_string(options.swap_deadline.count()) + " ms";
    look_at(slot, now);
  }
  const auto let_in = [&] {
    bool sent = false;
    for (std::size_t slot = 0; slot < slots.size(); ++slot)
      if (schedule.slots()[slot].state == ModelSchedule::State::kServing)
        sent = send_waiting(slot, now) || sent;
    return sent;
  };
  // First, since a slot that has just been given looks idle until it has what waited for it: it
  // would be given away again before it served anybody, and where there is neither a quantum nor a
  // linger so would the next, without end. Again, since a plan may open slots, and who is let in
  // changes who waits and with it what comes next.
  let_in();
  do {
    for (const ModelSchedule::Swap& swap : schedule.plan(now))
      begin_swap(swap, now);
  } while (let_in());
  std::erase_if(models, [&](const auto& entry) { return !schedule.has(entry.first); });
  if (num_callers == 0 && !next_wake()) return;
  news = true;
  changed.notify_all();
}

void ModelPool::Impl::begin_swap(const ModelSchedule::Swap& swap, Clock::TimePoint now) {
  Slot& slot = slots[swap.slot];
  suspend_all(swap.slot, now);
  if (slot.busy_since) slot.busy_seconds += seconds_between(*slot.busy_since, now);
  slot.busy_since.reset();
  slot.swap_began = now;
  logger("pool")->info("slot={} model={} swap begins", swap.slot,
                       swap.model.empty() ? "(none)" : swap.model);
  give_job(swap.slot, swap.model.empty() ? nullptr : models.at(swap.model).spec, "");
}

/// What runs on the slot waits again, ahead of what came later.
void ModelPool::Impl::suspend_all(std::size_t slot, Clock::TimePoint now) {
  std::vector<RequestId> ids;
  for (const auto& [id, entry] : entries)
    if (entry.slot == slot) ids.push_back(id);
  std::ranges::sort(ids, std::greater());
  for (const RequestId id : ids) {
    Entry& entry = entries.at(id);
    slots[slot].pool->cancel(id);  // spares the worker steps that nobody will see
    entry.slot.reset();
    const std::string name = entry.journal.request().model;
    Model& model = models.at(name);
    wait_for_slot(model, now);
    model.waiting.push_front(id);
    update_waiting(name);
    for (GenerateEvent& event :
         entry.journal.cancelled ? entry.journal.settle_cancelled() : entry.journal.settle_ended())
      sink(std::move(event));
    if (entry.journal.num_unfinished() == 0) {
      erase(id, now);
    } else {
      ++num_suspended;
    }
  }
}

/// Ends what the slot has and starts `next`, or nothing; `failure` is why the slot's pool is ended
/// before it was ready.
void ModelPool::Impl::give_job(std::size_t index, std::shared_ptr<const ModelSpec> next,
                               std::string failure) {
  Slot& slot = slots[index];
  ++slot.generation;
  slot.up = false;
  slot.failure.clear();
  slot.job.emplace(
      Job{slot.generation, std::exchange(slot.pool, nullptr), std::move(next), std::move(failure)});
  new_jobs.notify_all();
}

void ModelPool::Impl::run_slot(std::size_t index) {
  Slot& slot = slots[index];
  std::unique_lock lock(mutex);
  for (;;) {
    new_jobs.wait(lock, [&] { return slot.job.has_value() || stopping; });
    if (!slot.job) return;
    Job job = std::move(*slot.job);
    slot.job.reset();
    lock.unlock();
    run_job(index, std::move(job));
    lock.lock();
  }
}

void ModelPool::Impl::run_job(std::size_t index, Job job) {
  bool start_next = job.next != nullptr;
  if (job.old != nullptr) {
    job.old->shutdown(kStopDeadline);
    const PoolStatus last = job.old->status();
    job.old.reset();
    const std::scoped_lock lock(mutex);
    keep_counters(index, last);
    start_next = start_next && !stopping;
  }
  Result<std::unique_ptr<SlotPool>> made = std::unique_ptr<SlotPool>();
  if (start_next) {
    made = start(*job.next, {[this, index, generation = job.generation](GenerateEvent event) {
                               on_event(index, generation, std::move(event));
                             },
                             [this, index, generation = job.generation](const PoolStatus& status) {
                               on_status(index, generation, status);
                             }});
  }
  const std::scoped_lock lock(mutex);
  const auto now = clock->now();
  if (made && *made != nullptr) slots[index].pool = std::move(*made);  // end_slots() ends it too
  if (stopping) return;
  if (!job.failure.empty()) {
    swap_failed(index, job.failure, now);
  } else if (job.next == nullptr) {
    schedule.swapped(index, now);
  } else if (!made) {
    swap_failed(index, made.error().message, now);
  } else {
    look_at(index, now);  // it may have spoken already
  }
  replan(now);
}

void ModelPool::Impl::on_status(std::size_t index, std::uint64_t generation,
                                const PoolStatus& status) {
  const std::scoped_lock lock(mutex);
  Slot& slot = slots[index];
  if (slot.generation != generation || slot.up || !slot.failure.empty()) return;
  if (status.ready)
    slot.up = true;
  else if (!status.failure.empty())
    slot.failure = status.failure;
  else
    return;
  if (slot.pool == nullptr) return;  // the job that starts it looks
  const auto now = clock->now();
  look_at(index, now);
  replan(now);
}

/// What came of a pool that was started. REQUIRES: it is in its slot.
void ModelPool::Impl::look_at(std::size_t index, Clock::TimePoint now) {
  Slot& slot = slots[index];
  if (stopping) return;
  if (slot.up) return swap_done(index, now);
  if (slot.failure.empty()) return;
  std::string failure = slot.failure;
  give_job(index, nullptr, std::move(failure));
}

void ModelPool::Impl::swap_done(std::size_t index, Clock::TimePoint now) {
  Slot& slot = slots[index];
  schedule.swapped(index, now);
  was_ready = true;
  ++slot.swaps;
  slot.last_swap_seconds = seconds_between(slot.swap_began, now);
  Model& model = models.at(schedule.slots()[index].model);
  ++model.loads;
  model.load_seconds += slot.last_swap_seconds;
  logger("pool")->info("slot={} model={} swapped seconds={:.3f}", index,
                       schedule.slots()[index].model, slot.last_swap_seconds);
}

void ModelPool::Impl::swap_failed(std::size_t index, const std::string& reason,
                                  Clock::TimePoint now) {
  const std::string name = schedule.slots()[index].model;
  const std::string why = "the model `" + name + "` cannot be loaded: " + reason;
  logger("pool")->error("slot={} model={} swap failed: {}", index, name, reason);
  schedule.failed(index, why, now);
  if (models.size() > 1) was_ready = true;  // the others can be asked for
  if (const auto model = models.find(name); model != models.end()) ++model->second.load_failures;
  fail_waiting(name, make_error(Errc::kUnavailable, why), now);
}

std::optional<Clock::TimePoint> ModelPool::Impl::next_swap_deadline() const {
  std::optional<Clock::TimePoint> next;
  for (std::size_t slot = 0; slot < slots.size(); ++slot) {
    if (schedule.slots()[slot].state != ModelSchedule::State::kSwapping) continue;
    if (slots[slot].pool == nullptr || !slots[slot].failure.empty()) continue;
    const auto deadline = slots[slot].swap_began + options.swap_deadline;
    if (!next || deadline < *next) next = deadline;
  }
  return next;
}

/// When time alone changes what is to be done.
std::optional<Clock::TimePoint> ModelPool::Impl::next_wake() const {
  std::optional<Clock::TimePoint> next;
  for (const auto& when : {schedule.next_plan(), next_deadline(), next_swap_deadline()})
    if (when && (!next || *when < *next)) next = when;
  return next;
}

void ModelPool::Impl::run_planner() {
  std::unique_lock lock(mutex);
  replan(clock->now());
  while (!stopping) {
    const auto now = clock->now();
    Clock::Duration sleep = kLongestSleep;
    if (const auto next = next_wake())
      sleep = std::min(sleep, std::max(*next - now, Clock::Duration::zero()));
    news = false;
    const bool woken = changed.wait_for(lock, sleep, [&] { return news || stopping; });
    if (!woken) replan(clock->now());
  }
}

/// REQUIRES: stopping; no lock held.
void ModelPool::Impl::end_slots() {
  for (Slot& slot : slots)
    slot.thread.join();
  for (Slot& slot : slots) {
    std::unique_ptr<SlotPool> pool;
    {
      const std::scoped_lock lock(mutex);
      ++slot.generation;
      pool = std::move(slot.pool);
    }
    if (pool != nullptr) pool->shutdown(kStopDeadline);
  }
}

}  // namespace thaw::forkpool
