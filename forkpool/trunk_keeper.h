#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/trunk_keeping.h"
#include "forkpool/loop.h"
#include "forkpool/spill_tier.h"
#include "forkpool/transfers.h"
#include "forkpool/trunk_files.h"
#include "forkpool/trunk_index.h"

namespace thaw::forkpool {

/// Keeps trunks for callers, out of reach of eviction, until a pin is released or its time is over:
/// in the arena, and, where there is a spill directory, in a file, so that they outlive the server.
/// Writes and reads files for them. Answers every call exactly once. Belongs to the loop's thread.
class TrunkKeeper {
 public:
  /// What only the dispatcher knows.
  struct Workers {
    /// Null before the first worker is ready; the same from then on.
    std::function<const EngineIdentity*()> engine;
    /// The worker where most of these blocks are alive, and how many tokens that is.
    struct Alive {
      Transfers::End worker;
      std::uint32_t num_tokens = 0;
    };
    std::function<std::optional<Alive>(PrefixNames&)> most_alive;
    /// What prefilling so many tokens takes.
    std::function<double(std::uint64_t tokens)> prefill_seconds;
    /// After everything that changes num_pins().
    std::function<void()> changed;
  };

  /// Where trunks lie. `arena` may be null: everything is refused then.
  struct Places {
    kvsnap::Arena* arena = nullptr;
    TrunkIndex* trunks = nullptr;
    Transfers* transfers = nullptr;
    TrunkFiles* files = nullptr;
    SpillTier* spill = nullptr;  ///< null: no spill directory
  };

  TrunkKeeper(Loop& loop, const Places& places, Workers workers);

  void keep(const KeepTrunk& trunk, TrunkDone done);
  void release(const PinId& pin);
  void save(const SaveTrunk& trunk, TrunkDone done);
  void load(const LoadTrunk& trunk, TrunkDone done);

  /// Has a trunk in the arena: of these tokens as many as are alive anywhere. `done` comes from the
  /// loop or from within the call. Errors: kNotFound, what writing and reading meet.
  void bring_to_arena(const TrunkOwner& owner, const std::vector<TokenId>& token_ids,
                      std::function<void(Result<TrunkIndex::Found>)> done);

  std::optional<Workers::Alive> most_alive(PrefixNames& names) const {
    return workers_.most_alive(names);
  }

  /// The first worker is ready: what waited for it goes on.
  void on_engine();
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
    std::optional<KeptTrunk> held;  ///< by the pin; a file is still waited for
  };

  std::uint64_t begin(const PinId& pin, std::chrono::milliseconds deadline, TrunkDone done);
  void end(std::uint64_t call, Result<KeptTrunk> result);
  void hold(const PinId& pin, TrunkId trunk, std::chrono::seconds ttl);
  void drop(const PinId& pin);
  void arm_expiry();
  void keep_found(std::uint64_t call, const TrunkIndex::Found& found, std::chrono::seconds ttl);
  void hold_and_write(std::uint64_t call, TrunkId trunk, KeptTrunk what, std::chrono::seconds ttl);
  void start_load(std::uint64_t call, const LoadTrunk& trunk);

  Loop& loop_;
  Places places_;
  TrunkIndex& trunks_;
  Workers workers_;
  std::map<PinId, Pin> pins_;
  std::set<std::pair<Clock::TimePoint, PinId>> expiries_;
  Loop::Timer expiry_timer_;
  std::map<std::uint64_t, Call> calls_;
  std::uint64_t next_call_ = 1;
  std::vector<std::function<void()>> waiting_for_engine_;
  bool stopped_ = false;
};

}  // namespace thaw::forkpool
