#include "forkpool/model_schedule.h"

#include <algorithm>
#include <tuple>
#include <utility>

namespace thaw::forkpool {

ModelSchedule::ModelSchedule(const Options& options, const std::vector<std::string>& at_start)
    : options_(options), slots_(options.num_slots) {
  for (std::size_t i = 0; i < std::min(slots_.size(), at_start.size()); ++i)
    slots_[i].former = at_start[i];
}

void ModelSchedule::add(const std::string& model) {
  models_[model].leaving = false;
}

bool ModelSchedule::remove(const std::string& model) {
  const auto found = models_.find(model);
  if (found == models_.end() || found->second.leaving) return false;
  found->second.leaving = true;
  return true;
}

void ModelSchedule::set_waiting(const std::string& model, std::size_t count,
                                Clock::TimePoint oldest) {
  const auto found = models_.find(model);
  if (found == models_.end()) return;
  found->second.waiting = count;
  found->second.oldest = oldest;
}

std::optional<std::size_t> ModelSchedule::open_slot(const std::string& model) const {
  for (std::size_t slot = 0; slot < slots_.size(); ++slot)
    if (slots_[slot].state == State::kServing && slots_[slot].model == model) return slot;
  return std::nullopt;
}

std::optional<std::string> ModelSchedule::refusal(const std::string& model,
                                                  Clock::TimePoint now) const {
  const auto found = models_.find(model);
  if (found == models_.end() || found->second.refused_until <= now) return std::nullopt;
  return found->second.reason;
}

void ModelSchedule::began(std::size_t slot, Clock::TimePoint now) {
  ++slots_[slot].running;
  slots_[slot].last_used = now;
}

void ModelSchedule::ended(std::size_t slot, Clock::TimePoint now) {
  --slots_[slot].running;
  slots_[slot].last_used = now;
}

bool ModelSchedule::has_slot(const std::string& model) const {
  return std::ranges::any_of(slots_, [&](const Slot& slot) {
    return slot.model == model && (slot.state == State::kServing || slot.state == State::kSwapping);
  });
}

/// Models that wait and have no slot that serves them, the longest wait first.
std::vector<std::string> ModelSchedule::demands(Clock::TimePoint now) const {
  std::vector<std::string> names;
  for (const auto& [name, model] : models_)
    if (model.waiting > 0 && !has_slot(name) && !refusal(name, now)) names.push_back(name);
  std::ranges::sort(names, [&](const std::string& a, const std::string& b) {
    return std::tie(models_.at(a).oldest, a) < std::tie(models_.at(b).oldest, b);
  });
  return names;
}

bool ModelSchedule::quantum_over(const Slot& slot, Clock::TimePoint now) const {
  return now >= slot.served_since + options_.quantum;
}

bool ModelSchedule::can_be_had(const Slot& slot, Clock::TimePoint now) const {
  switch (slot.state) {
    case State::kEmpty:
    case State::kClosing:
      return true;
    case State::kServing:
      return quantum_over(slot, now) ||
             (slot.running == 0 && now >= slot.last_used + options_.linger);
    case State::kSwapping:
      break;
  }
  return false;
}

std::optional<std::size_t> ModelSchedule::choose(const std::string& model,
                                                 const std::vector<bool>& taken,
                                                 Clock::TimePoint now) const {
  // Its own, which is being closed for another; empty; idle; closing; busy. Then the oldest.
  const auto rank = [&](const Slot& slot) {
    int kind = 4;
    Clock::TimePoint since = slot.served_since;
    if (slot.state == State::kClosing) {
      kind = slot.model == model ? 0 : 3;
      since = slot.closing_since;
    }
    if (slot.running == 0 && kind > 2) {
      kind = 2;
      since = slot.last_used;
    }
    if (slot.state == State::kEmpty) {
      // The one that had it comes first, so that the others come back to theirs.
      kind = 1;
      since = slot.former == model ? Clock::TimePoint::min() : slot.last_used;
    }
    return std::pair(kind, since);
  };
  std::optional<std::size_t> best;
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (taken[slot] || !can_be_had(slots_[slot], now)) continue;
    if (!best || rank(slots_[slot]) < rank(slots_[*best])) best = slot;
  }
  return best;
}

void ModelSchedule::begin_swap(std::size_t index, const std::string& model,
                               std::vector<Swap>& swaps) {
  Slot& slot = slots_[index];
  if (!slot.model.empty()) slot.former = slot.model;
  // What runs waits from now on: a model that is leaving stays for it.
  if (const auto former = models_.find(slot.model); former != models_.end())
    former->second.waiting += slot.running;
  if (model.empty()) slot.former.clear();
  slot.model = model;
  slot.next.clear();
  slot.state = State::kSwapping;
  slot.running = 0;
  swaps.push_back({index, model});
}

void ModelSchedule::give(std::size_t index, const std::string& model, Clock::TimePoint now,
                         std::vector<Swap>& swaps) {
  Slot& slot = slots_[index];
  if (slot.state == State::kClosing && slot.model == model) {
    slot.state = State::kServing;  // nobody older wants it
    slot.next.clear();
    return;
  }
  if (slot.state == State::kServing) {
    slot.state = State::kClosing;
    slot.closing_since = now;
  }
  slot.next = model;
  if (slot.running == 0 || now >= slot.closing_since + options_.grace)
    begin_swap(index, model, swaps);
}

/// What nobody waits for: the models that slots had before a swap failed, or begin with.
void ModelSchedule::use_empty_slots(Clock::TimePoint now, std::vector<Swap>& swaps) {
  for (std::size_t index = 0; index < slots_.size(); ++index) {
    const Slot& slot = slots_[index];
    if (slot.state != State::kEmpty || slot.former.empty()) continue;
    const auto model = models_.find(slot.former);
    if (model == models_.end() || model->second.leaving || has_slot(slot.former) ||
        refusal(slot.former, now))
      continue;
    begin_swap(index, std::string(slot.former), swaps);
  }
}

/// Models that were removed and have nothing to do any more.
void ModelSchedule::let_go(std::vector<Swap>& swaps) {
  for (std::size_t index = 0; index < slots_.size(); ++index) {
    const Slot& slot = slots_[index];
    const auto model = models_.find(slot.model);
    if (slot.state != State::kServing || slot.running > 0 || model == models_.end()) continue;
    if (!model->second.leaving || model->second.waiting > 0) continue;
    begin_swap(index, "", swaps);
  }
  std::erase_if(models_, [&](const auto& entry) {
    const auto& [name, model] = entry;
    const bool in_a_slot =
        std::ranges::any_of(slots_, [&](const Slot& slot) { return slot.model == name; });
    return model.leaving && model.waiting == 0 && !in_a_slot;
  });
}

std::vector<ModelSchedule::Swap> ModelSchedule::plan(Clock::TimePoint now) {
  planned_at_ = now;
  std::vector<Swap> swaps;
  std::vector<std::string> given(slots_.size());
  std::vector<bool> taken(slots_.size(), false);
  for (const std::string& model : demands(now)) {
    const auto slot = choose(model, taken, now);
    if (!slot) continue;
    taken[*slot] = true;
    given[*slot] = model;
  }
  for (std::size_t slot = 0; slot < slots_.size(); ++slot) {
    if (taken[slot]) {
      give(slot, given[slot], now, swaps);
    } else if (slots_[slot].state == State::kClosing) {
      slots_[slot].state = State::kServing;
      slots_[slot].next.clear();
    }
  }
  use_empty_slots(now, swaps);
  let_go(swaps);
  return swaps;
}

std::optional<Clock::TimePoint> ModelSchedule::next_plan() const {
  std::optional<Clock::TimePoint> next;
  const auto consider = [&](Clock::TimePoint when) {
    if (when > planned_at_ && (!next || when < *next)) next = when;
  };
  const bool wanted = !demands(planned_at_).empty();
  for (const Slot& slot : slots_) {
    if (slot.state == State::kClosing) consider(slot.closing_since + options_.grace);
    if (slot.state == State::kServing && wanted) {
      consider(slot.served_since + options_.quantum);
      if (slot.running == 0) consider(slot.last_used + options_.linger);
    }
    if (slot.state == State::kEmpty && !slot.former.empty()) {
      const auto model = models_.find(slot.former);
      if (model != models_.end()) consider(model->second.refused_until);
    }
  }
  return next;
}

void ModelSchedule::swapped(std::size_t index, Clock::TimePoint now) {
  Slot& slot = slots_[index];
  slot.state = slot.model.empty() ? State::kEmpty : State::kServing;
  slot.former.clear();
  slot.served_since = now;
  slot.last_used = now;
  const auto model = models_.find(slot.model);
  if (model != models_.end()) model->second.failures = 0;
}

void ModelSchedule::failed(std::size_t index, const std::string& reason, Clock::TimePoint now) {
  Slot& slot = slots_[index];
  if (const auto found = models_.find(slot.model); found != models_.end()) {
    Model& model = found->second;
    auto pause = options_.retry_after;
    for (std::uint32_t i = 0; i < model.failures && pause < options_.longest_retry; ++i)
      pause *= 2;
    ++model.failures;
    model.refused_until = now + std::min(pause, options_.longest_retry);
    model.reason = reason;
  }
  // A model that cannot come back is tried again when somebody asks for it.
  if (slot.former == slot.model) slot.former.clear();
  slot.model.clear();
  slot.state = State::kEmpty;
  slot.last_used = now;
}

}  // namespace thaw::forkpool
