#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "forkpool/journal.h"
#include "forkpool/model_pool.h"

namespace thaw::forkpool {

/// Everything below is guarded by `mutex` unless it says otherwise.
struct ModelPool::Impl {
  struct Model {
    std::shared_ptr<const ModelSpec> spec;
    std::deque<RequestId> waiting;
    std::size_t callers = 0;  ///< that wait for it to be loaded
    Clock::TimePoint waiting_since;  ///< without a break
    bool leaving = false;
    std::uint64_t requests = 0;
    std::uint64_t loads = 0;
    double load_seconds = 0;
    std::uint64_t load_failures = 0;
  };
  /// End the slot's pool and start the next one.
  struct Job {
    std::uint64_t generation = 0;
    std::unique_ptr<SlotPool> old;  ///< may be null
    std::shared_ptr<const ModelSpec> next;  ///< null: nothing
    std::string failure;  ///< why the old one, which was never ready, is given up
  };
  struct Slot {
    std::unique_ptr<SlotPool> pool;  ///< null while none runs
    std::uint64_t generation = 0;  ///< what pools before this one say is not heard
    bool up = false;  ///< this pool has been ready
    std::string failure;  ///< why it never will be
    Clock::TimePoint swap_began;
    double last_swap_seconds = 0;
    std::uint64_t swaps = 0;
    std::optional<Clock::TimePoint> busy_since;
    double busy_seconds = 0;
    PoolStatus former;  ///< counters of the pools before
    std::optional<Job> job;  ///< for its thread
    std::thread thread;
  };
  struct Entry {
    Ongoing journal;
    std::optional<std::size_t> slot;  ///< where it runs; else it waits
  };

  Impl(const ModelPoolOptions& options_in, const std::vector<std::string>& at_start)
      : options(options_in),
        schedule(options_in.schedule, at_start),
        slots(options_in.schedule.num_slots) {}

  // Requests: model_pool.cc.
  void take(GenerateRequest request, Clock::TimePoint now, std::map<std::size_t, ForkPlan>& plans);
  std::optional<Error> refuse(const GenerateRequest& request, Clock::TimePoint now) const;
  void on_event(std::size_t slot, std::uint64_t generation, GenerateEvent event);
  void occupy(std::size_t slot, Clock::TimePoint now);
  void erase(RequestId id, Clock::TimePoint now);
  void fail(RequestId id, Error error, Clock::TimePoint now);
  void wait_for_slot(Model& model, Clock::TimePoint now);
  void update_waiting(const std::string& name);
  bool send_waiting(std::size_t slot, Clock::TimePoint now);
  void fail_waiting(const std::string& name, const Error& error, Clock::TimePoint now);
  void fail_expired(Clock::TimePoint now);
  std::optional<Clock::TimePoint> next_deadline() const;

  template <typename Trunk>
  void about_trunk(void (SlotPool::*what)(Trunk, TrunkDone), Trunk trunk, TrunkDone done);

  // Slots: model_pool_slots.cc.
  void replan(Clock::TimePoint now);
  void begin_swap(const ModelSchedule::Swap& swap, Clock::TimePoint now);
  void suspend_all(std::size_t slot, Clock::TimePoint now);
  void give_job(std::size_t slot, std::shared_ptr<const ModelSpec> next, std::string failure);
  void run_slot(std::size_t slot);
  void run_job(std::size_t slot, Job job);
  void on_status(std::size_t slot, std::uint64_t generation, const PoolStatus& status);
  void look_at(std::size_t slot, Clock::TimePoint now);
  void swap_done(std::size_t slot, Clock::TimePoint now);
  void swap_failed(std::size_t slot, const std::string& reason, Clock::TimePoint now);
  void keep_counters(std::size_t slot, const PoolStatus& last);
  std::optional<Clock::TimePoint> next_swap_deadline() const;
  std::optional<Clock::TimePoint> next_wake() const;
  void run_planner();
  void end_slots();

  // model_pool_status.cc
  PoolStatus status(Clock::TimePoint now) const;

  const ModelPoolOptions options;
  StartSlotPool start;  ///< set once
  EventSink sink;  ///< set once
  const Clock* clock = nullptr;

  mutable std::mutex mutex;
  std::condition_variable changed;  ///< the planner, shutdown() and wait_loaded() listen
  std::condition_variable new_jobs;
  ModelSchedule schedule;
  std::map<std::string, Model> models;
  std::vector<Slot> slots;
  std::unordered_map<RequestId, Entry> entries;
  Clock::TimePoint began;
  bool was_ready = false;  ///< requests can be taken, be it that each waits for its slot
  bool draining = false;
  bool stopping = false;  ///< no more swaps
  bool news = false;  ///< for the planner
  std::size_t num_with_deadline = 0;  ///< entries
  std::size_t num_callers = 0;  ///< in wait_loaded()
  std::uint64_t num_suspended = 0;

  std::thread planner;
};

}  // namespace thaw::forkpool
