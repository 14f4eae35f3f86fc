#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>

#include "engine/base/trunk_keeping.h"
#include "forkpool/loop.h"
#include "forkpool/transfers.h"
#include "forkpool/trunk_index.h"

namespace thaw::forkpool {

/// Keeps trunks for callers: in the arena, out of reach of eviction, until a pin is released or its
/// time is over. Answers every call exactly once. Belongs to the loop's thread.
class TrunkKeeper {
 public:
  /// What only the dispatcher knows.
  struct Workers {
    /// Nothing while no worker was ever ready.
    std::function<std::optional<Hash128>(const TrunkOwner&)> cache_root;
    /// The worker where most of these blocks are alive, and how many tokens that is.
    struct Alive {
      Transfers::End worker;
      std::uint32_t num_tokens = 0;
    };
    std::function<std::optional<Alive>(PrefixNames&)> most_alive;
  };

  /// `arena` may be null: everything is refused then.
  TrunkKeeper(Loop& loop, kvsnap::Arena* arena, TrunkIndex& trunks, Transfers& transfers,
              Workers workers);

  void keep(KeepTrunk trunk, TrunkDone done);
  void release(const PinId& pin);
  void save(SaveTrunk trunk, TrunkDone done);
  void load(LoadTrunk trunk, TrunkDone done);

  /// Ends every call that is under way, and refuses new ones.
  void stop();

  std::size_t num_pins() const { return pins_.size(); }

 private:
  struct Pin {
    TrunkId trunk = 0;
    std::optional<Clock::TimePoint> expiry;
  };
  /// A call that has not been answered.
  struct Call {
    PinId pin;
    TrunkDone done;
    std::unique_ptr<Loop::Timer> timer;
  };

  std::uint64_t begin(const PinId& pin, std::chrono::milliseconds deadline, TrunkDone done);
  void end(std::uint64_t call, Result<KeptTrunk> result);
  void hold(const PinId& pin, TrunkId trunk, std::chrono::seconds ttl);
  void drop(const PinId& pin);
  void arm_expiry();

  Loop& loop_;
  kvsnap::Arena* arena_;
  TrunkIndex& trunks_;
  Transfers& transfers_;
  Workers workers_;
  std::map<PinId, Pin> pins_;
  std::set<std::pair<Clock::TimePoint, PinId>> expiries_;
  Loop::Timer expiry_timer_;
  std::map<std::uint64_t, Call> calls_;
  std::uint64_t next_call_ = 1;
  bool stopped_ = false;
};

}  // namespace thaw::forkpool
