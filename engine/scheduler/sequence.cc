#include "engine/scheduler/sequence.h"

#include <algorithm>
#include <tuple>

namespace thaw::scheduler {

std::int32_t effective_priority(const Sequence& sequence) {
  std::int32_t priority = sequence.own_priority();
  for (const Sequence* waiter : sequence.waiters)
    priority = std::min(priority, effective_priority(*waiter));
  return priority;
}

bool outranks(const Sequence& a, const Sequence& b) {
  return std::tuple(effective_priority(a), a.request->arrival, a.choice_index) <
         std::tuple(effective_priority(b), b.request->arrival, b.choice_index);
}

}  // namespace thaw::scheduler
