#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "engine/base/types.h"
#include "engine/scheduler/sequence.h"

namespace thaw::scheduler {

/// The prefills that are not done yet, per cache root, and who waits for which of them.
///
/// A sequence waits for a running prefill, or for one that entered the queue before it: so waiting
/// never runs in a circle.
class Trunks {
 public:
  /// REQUIRES: the sequence is waiting or prefilling until leave().
  void enter(Sequence& sequence);
  /// Its prefill is done, or it has ended. Those still waiting for it are returned, earliest first,
  /// waiting for nothing now.
  std::vector<Sequence*> leave(Sequence& sequence);

  /// Makes `sequence` wait for the prefill that shares most tokens with it, if that is more than
  /// the `num_alive` that the index has already. The last token is never shared. True: it waits.
  bool wait_for_best(Sequence& sequence, std::uint32_t num_alive, bool running_only);
  /// Ends a wait, if there is one.
  void stop_waiting(Sequence& sequence);
  /// Lets those go on whose common prefix has been computed.
  void advance(Sequence& sequence);

  bool empty() const { return prefills_.empty(); }

 private:
  std::unordered_map<Hash128, std::vector<Sequence*>, Hash128Hasher> prefills_;
};

}  // namespace thaw::scheduler
