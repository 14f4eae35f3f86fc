#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "engine/base/pool_status.h"
#include "forkpool/spill_directory.h"
#include "forkpool/store_tier.h"
#include "forkpool/trunk_files.h"

namespace thaw::forkpool {

/// The tier below the arena: trunks in a directory, found again by their hash chains, also after a
/// restart. Below it there may be a store that has what the directory has no room for. Everything
/// slow happens on the threads of TrunkFiles. Belongs to the loop's thread; callbacks come from the
/// loop.
class SpillTier {
 public:
  using Done = std::function<void(Result<TrunkId>)>;
  /// What prefilling so many tokens takes, as measured.
  using PrefillSeconds = std::function<double(std::uint64_t tokens)>;

  /// `store` may be null, and must outlive this.
  SpillTier(Loop& loop, kvsnap::Arena* arena, TrunkIndex& trunks, TrunkFiles& files,
            std::string directory, std::uint64_t max_bytes, PrefillSeconds prefill_seconds,
            StoreTier* store);

  /// Looks for files; on_ready is called when that is done, or takes too long to be waited for.
  void start();
  bool ready() const { return ready_; }
  std::function<void()> on_ready;
  std::function<void()> on_change;  ///< of what add_to() says
  /// The engine is known: from now on its files are found, those of others are left alone.
  void identify(const EngineIdentity& engine);

  /// Writes a trunk that lies in the arena, unless a file holds it; one after another. `done` may
  /// be null, where nobody waits for it: then it comes behind those that somebody waits for, and
  /// not at all where it waits already or has_room() says no.
  void spill(TrunkId trunk, Done done);
  /// Reads a trunk's file into the arena, fetched from the store before where only that has it. A
  /// file that is damaged is removed, and the trunk gone.
  void fetch(TrunkId trunk, Done done);

  /// For trunks that nobody waits for.
  bool has_room() const;

  void add_to(PoolStatus& status) const;

 private:
  struct Job {
    TrunkId trunk = 0;
    Done done;
  };
  void index();
  void write_next();
  void write(const Job& job, const std::string& path);
  void fetch_object(TrunkId trunk, Done done);
  void on_object(TrunkId trunk, const std::string& path, const Result<void>& fetched);
  void forget(const std::string& path);
  void has_file(Trunk& trunk, const std::string& path);
  std::set<std::string> waiting_paths() const;
  std::set<std::string> pinned_paths() const;
  void refresh_usage();

  Loop& loop_;
  kvsnap::Arena* arena_;
  TrunkIndex& trunks_;
  TrunkFiles& files_;
  std::shared_ptr<SpillDirectory> directory_;  ///< shared with the threads
  PrefillSeconds prefill_seconds_;
  StoreTier* store_;
  std::map<TrunkId, std::vector<Done>> objects_;  ///< on their way from the store
  std::set<TrunkId> fetched_;  ///< whose files came from there
  Loop::Timer scan_timer_;
  bool ready_ = false;
  std::vector<SpillDirectory::File> found_;  ///< by the scan, until the engine is known
  std::unique_ptr<const EngineIdentity> engine_;  ///< null until it is known
  std::deque<Job> waiting_;
  std::optional<TrunkId> writing_;
  Loop::Timer write_timer_;  ///< where the threads had too much to do
  SpillDirectory::Usage usage_;
  TierStatus counts_;
};

}  // namespace thaw::forkpool
