#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "engine/base/pool_status.h"
#include "forkpool/file_crew.h"
#include "forkpool/loop.h"
#include "forkpool/trunk_files.h"
#include "forkpool/trunk_index.h"
#include "forkpool/trunk_store.h"

namespace thaw::forkpool {

/// The tier below the files: every file of the spill directory is put into a store (S3), one after
/// another, and found there by all servers that are given the same URL, when no file has it any
/// more. Nothing waits for it but the requests that it pays for; where putting or getting fails,
/// that is left alone for a while. Belongs to the loop's thread; callbacks come from the loop.
class StoreTier {
 public:
  struct Options {
    std::string url;
    std::uint64_t max_bytes = 0;  ///< of all engines' trunks; 0: the store's own rules hold
    Clock::Duration list_every = std::chrono::minutes(5);
  };
  using Done = std::function<void(Result<void>)>;

  StoreTier(Loop& loop, TrunkIndex& trunks, kvsnap::FileIo& io,
            std::unique_ptr<kvsnap::Store> store, Options options);
  /// Ends what is under way.
  ~StoreTier();
  StoreTier(const StoreTier&) = delete;
  StoreTier& operator=(const StoreTier&) = delete;

  /// The engine is known: what the store has of it is looked for.
  void identify(const EngineIdentity& engine);

  /// A file of the spill directory is there, and shall be in the store too.
  void offer(const std::string& path);
  /// Files that are not there yet.
  std::set<std::string> waiting() const;
  /// Every file that was offered is there, or cannot be now.
  bool is_settled() const;
  std::function<void()> on_settled;  ///< it is now

  /// Whether fetch() may be called: the store answers, and not too much is on its way.
  bool is_available() const;
  /// Makes a trunk's object the file `path`. What is no longer there, or damaged, is forgotten.
  void fetch(TrunkId trunk, const std::string& path, Done done);
  /// What was fetched turned out to be damaged: nobody shall fetch it again.
  void discard(const std::string& key);

  std::function<void()> on_change;  ///< of what add_to() says
  /// Called with what was fetched and how long that took.
  std::function<void(std::uint64_t bytes, Clock::Duration took)> on_fetched;
  /// At every look at the store before which nothing was fetched for a while.
  std::function<void()> on_idle_look;

  void add_to(PoolStatus& status) const;

 private:
  struct Known {
    std::uint64_t bytes = 0;
    std::int64_t modified = 0;
  };
  void look();
  void look_later(Clock::Duration after);
  void on_listed(std::vector<TrunkStore::Object> objects);
  void describe_next();
  void on_described(const std::string& key, TrunkStore::Description description);
  void upload_next();
  void on_uploaded(const std::string& path, const std::string& key,
                   const Result<std::uint64_t>& bytes);
  void make_room();
  void forget(const std::string& key);
  /// Of one kind of use, from its first failure to the next success.
  struct Pause {
    const char* what;  ///< is not done meanwhile
    Loop::Timer timer;
    Clock::TimePoint until{};
    Clock::Duration length{};
  };
  void failed(Pause& pause, const Error& error);
  static void worked(Pause& pause) {
    pause.until = {};
    pause.length = {};
  }
  bool lasts(const Pause& pause) const { return loop_.now() < pause.until; }
  void add_object(const std::string& key, const Known& known);
  void remove_object(const std::string& key);
  void is_in(Trunk& trunk, const std::string& key);
  void changed();

  Loop& loop_;
  TrunkIndex& trunks_;
  Options options_;
  std::shared_ptr<TrunkStore> store_;  ///< shared with the threads
  std::unique_ptr<const EngineIdentity> engine_;  ///< null until it is known
  std::map<std::string, Known> objects_;  ///< by key, of all engines
  std::uint64_t object_bytes_ = 0;  ///< of all of them
  std::uint64_t num_trunks_ = 0;  ///< whose object is known
  std::deque<std::string> to_describe_;  ///< keys
  std::deque<std::string> uploads_;  ///< paths
  bool is_listed_ = false;
  bool looking_ = false;
  bool describing_ = false;
  bool uploading_ = false;
  std::string uploading_path_;
  std::uint32_t num_fetching_ = 0;
  bool fetched_since_look_ = false;
  Pause puts_;
  Pause gets_;  ///< lists, descriptions, fetches
  Loop::Timer look_timer_;
  TierStatus counts_;
  // Last: their threads use the store. What is fetched waits for no upload.
  FileCrew tending_;
  FileCrew fetching_;
};

}  // namespace thaw::forkpool
