#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/clock.h"

namespace thaw::forkpool {

/// Which model has which slot, and when a slot changes hands. A pure rule: no threads, no I/O, time
/// comes in as a value. A model has one slot at a time, because branches of one model share only
/// within one.
///
/// - A model that waits for a slot gets an empty one; else an idle one, the least recently used,
///   once that has been idle for `linger` (the next round of a fan-out comes that soon) or has had
///   its quantum; else a busy one that has had its quantum, the longest served.
/// - The model whose oldest request waits longest chooses first.
/// - A busy slot that is given away takes no new requests; what has not ended after `grace` is
///   suspended and goes on when its model has a slot again. If nobody wants the slot any more by
///   then, it is opened again.
/// So with M models and N slots that all load, M > N, nobody waits longer than (ceil(M/N) - 1) *
/// (quantum + grace + a swap) + grace + a swap, however long the answers are. Who is ahead waits
/// since before, so each of the others is so at most once. Slots that serve hand over once in each
/// turn of quantum, grace and swap; slots that are closing, of which the waiting model's own may be
/// one, hand over within a grace first. What is more than M-N models that wait was put out by the
/// latter: so after that grace, turns for M-N are left, N at a time, and a swap.
/// - A model that fails to load is refused for `retry_after`, twice as long after each failure in a
///   row; its slot goes back to the model that it had.
class ModelSchedule {
 public:
  struct Options {
    std::size_t num_slots = 1;
    Clock::Duration quantum = std::chrono::seconds(5);
    Clock::Duration grace = std::chrono::seconds(2);
    Clock::Duration linger = std::chrono::milliseconds(50);
    Clock::Duration retry_after = std::chrono::seconds(5);
    Clock::Duration longest_retry = std::chrono::minutes(5);
  };
  enum class State : std::uint8_t { kEmpty, kSwapping, kServing, kClosing };
  struct Slot {
    State state = State::kEmpty;
    std::string model;  ///< whose weights it has, or is being given; empty: nobody's
    std::string next;  ///< for whom it is being closed
    std::string former;  ///< comes back if a swap fails and nobody waits
    std::size_t running = 0;  ///< requests on it
    Clock::TimePoint served_since;  ///< its quantum counts from here
    Clock::TimePoint closing_since;
    Clock::TimePoint last_used;
  };
  /// What to do to a slot now: give it to `model`, or empty it where that is empty. Requests that
  /// still run on it are to be suspended.
  struct Swap {
    std::size_t slot = 0;
    std::string model;
  };

  /// `at_start`: the models that slots begin with, in order.
  ModelSchedule(const Options& options, const std::vector<std::string>& at_start);

  void add(const std::string& model);
  /// The model goes once nothing of it waits or runs. False where it is unknown.
  bool remove(const std::string& model);
  /// False once a removed model is gone.
  bool has(const std::string& model) const { return models_.contains(model); }

  /// How many requests of a model wait for a slot, and since when the oldest does.
  void set_waiting(const std::string& model, std::size_t count, Clock::TimePoint oldest);
  /// The slot that takes requests of the model now.
  std::optional<std::size_t> open_slot(const std::string& model) const;
  /// Why requests of the model are refused now; nothing where they are not.
  std::optional<std::string> refusal(const std::string& model, Clock::TimePoint now) const;

  /// A request was sent to the slot, or has left it.
  void began(std::size_t slot, Clock::TimePoint now);
  void ended(std::size_t slot, Clock::TimePoint now);

  /// Decides. Slots are closed and opened again by this; those in the answer count as swapping
  /// until swapped() or failed() is called.
  std::vector<Swap> plan(Clock::TimePoint now);
  /// When plan() might decide something without further news; may have passed since it was called.
  std::optional<Clock::TimePoint> next_plan() const;

  /// The swap of a slot is done: it serves its model, or is empty.
  void swapped(std::size_t slot, Clock::TimePoint now);
  /// It could not be done: the slot is empty.
  void failed(std::size_t slot, const std::string& reason, Clock::TimePoint now);

  const std::vector<Slot>& slots() const { return slots_; }
  const Options& options() const { return options_; }

 private:
  struct Model {
    std::size_t waiting = 0;
    Clock::TimePoint oldest;
    bool leaving = false;
    std::uint32_t failures = 0;  ///< in a row
    Clock::TimePoint refused_until;
    std::string reason;
  };

  bool has_slot(const std::string& model) const;
  std::vector<std::string> demands(Clock::TimePoint now) const;
  bool quantum_over(const Slot& slot, Clock::TimePoint now) const;
  bool can_be_had(const Slot& slot, Clock::TimePoint now) const;
  std::optional<std::size_t> choose(const std::string& model, const std::vector<bool>& taken,
                                    Clock::TimePoint now) const;
  void begin_swap(std::size_t slot, const std::string& model, std::vector<Swap>& swaps);
  void give(std::size_t slot, const std::string& model, Clock::TimePoint now,
            std::vector<Swap>& swaps);
  void use_empty_slots(Clock::TimePoint now, std::vector<Swap>& swaps);
  void let_go(std::vector<Swap>& swaps);

  Options options_;
  std::map<std::string, Model> models_;
  std::vector<Slot> slots_;
  Clock::TimePoint planned_at_ = Clock::TimePoint::min();
};

}  // namespace thaw::forkpool
