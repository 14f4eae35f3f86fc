#include "engine/scheduler/trunks.h"

#include <algorithm>
#include <utility>

namespace thaw::scheduler {

void Trunks::enter(Sequence& sequence) {
  prefills_[sequence.request->root].push_back(&sequence);
}

std::vector<Sequence*> Trunks::leave(Sequence& sequence) {
  stop_waiting(sequence);
  if (const auto found = prefills_.find(sequence.request->root); found != prefills_.end()) {
    std::erase(found->second, &sequence);
    if (found->second.empty()) prefills_.erase(found);
  }
  auto waiters = std::exchange(sequence.waiters, {});
  for (Sequence* waiter : waiters)
    waiter->wait_on = nullptr;
  std::sort(waiters.begin(), waiters.end(),
            [](const Sequence* a, const Sequence* b) { return a->ticket < b->ticket; });
  return waiters;
}

bool Trunks::wait_for_best(Sequence& sequence, std::uint32_t num_alive, bool running_only) {
  const auto found = prefills_.find(sequence.request->root);
  if (found == prefills_.end()) return false;
  const std::uint32_t most = sequence.num_tokens() - 1;
  std::uint32_t longest = num_alive;
  Sequence* best = nullptr;
  for (Sequence* other : found->second) {
    if (other == &sequence) continue;
    const bool running = other->state == SequenceState::kPrefilling;
    if (!running && (running_only || other->ticket > sequence.ticket)) continue;
    // More than `longest` in common means that the token at `longest` is.
    if (longest >= most || longest >= other->num_tokens()) continue;
    if (other->tokens[longest] != sequence.tokens[longest]) continue;
    const auto end = sequence.tokens.begin() + most;
    const auto parted =
        std::mismatch(sequence.tokens.begin(), end, other->tokens.begin(), other->tokens.end());
    const auto common = static_cast<std::uint32_t>(parted.first - sequence.tokens.begin());
    if (common <= longest) continue;
    longest = common;
    best = other;
  }
  if (best == nullptr) return false;
  sequence.wait_on = best;
  sequence.wait_position = longest;
  best->waiters.push_back(&sequence);
  return true;
}

void Trunks::stop_waiting(Sequence& sequence) {
  if (sequence.wait_on == nullptr) return;
  std::erase(sequence.wait_on->waiters, &sequence);
  sequence.wait_on = nullptr;
}

void Trunks::advance(Sequence& sequence) {
  std::erase_if(sequence.waiters, [&](Sequence* waiter) {
    if (waiter->wait_position > sequence.kv.computed) return false;
    waiter->wait_on = nullptr;
    sequence.followers.push_back({waiter->request->call.id, waiter->wait_position});
    return true;
  });
}

}  // namespace thaw::scheduler
