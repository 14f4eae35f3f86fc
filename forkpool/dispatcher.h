#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <vector>

#include "forkpool/fork_pool.h"
#include "forkpool/grouping.h"
#include "forkpool/journal.h"
#include "forkpool/loop.h"
#include "forkpool/peer_copies.h"
#include "forkpool/placement.h"
#include "forkpool/recent_trunks.h"
#include "forkpool/spill_tier.h"
#include "forkpool/store_tier.h"
#include "forkpool/transfers.h"
#include "forkpool/trunk_files.h"
#include "forkpool/trunk_index.h"
#include "forkpool/trunk_keeper.h"
#include "forkpool/worker_slot.h"

namespace thaw::forkpool {

/// What a move of 4,000 tokens between devices takes by the shorter way: for so long it is waited
/// for awake.
inline constexpr std::chrono::milliseconds kMoveAwake{3};

/// Who does what: takes requests, places them, passes events on exactly once, and sends what a dead
/// worker had again. Owns the worker slots. Belongs to the loop's thread.
///
/// A request waits here (waiting_, or quarantine_ after its second death), is held while its trunk
/// travels, or is on a worker. Room on a worker is bounded, so that a worker never refuses what the
/// pool has accepted.
class Dispatcher {
 public:
  using EventSink = ForkPool::EventSink;

  /// One KV memory per worker; `arena` may be null.
  Dispatcher(Loop& loop, const PoolOptions& options, WorkerSlot::Shared shared,
             std::vector<UniqueFd> kv_pools, kvsnap::Arena* arena, EventSink sink);

  void start();
  void submit(ForkPlan&& plan);
  void cancel(RequestId id);
  void end_choice(RequestId id, std::uint32_t choice);
  void transfer(const GenerateRequest& like, std::uint32_t from, std::uint32_t to, TransferWay way,
                std::chrono::milliseconds deadline, Transfers::Done done);

  TrunkKeeper& keeper() { return keeper_; }

  /// Refuses new requests, ends the workers once none runs, or, at `deadline`, fails what runs and
  /// kills them. `done` hears whether nothing had to be killed.
  void drain(Clock::TimePoint deadline, std::function<void(bool clean)> done);

  PoolStatus status() const;
  /// Called after everything that may have changed status().
  std::function<void()> on_change;

 private:
  using Entries = std::map<RequestId, Ongoing>;

  // Requests: dispatcher.cc.
  bool refuse(const GenerateRequest& request);
  void emit(GenerateEvent event);
  void fail(RequestId id, Error error);
  void erase(RequestId id);
  void leave(Ongoing& entry);  // its worker, or the one it is held for
  void on_events(std::uint32_t worker, std::vector<GenerateEvent> events);
  void on_deadline();
  void arm_deadline();

  // Placement: dispatch.cc.
  void pump();
  void run_quarantine();
  std::vector<std::uint32_t> candidates() const;
  std::size_t room(std::uint32_t worker) const;
  void place_waiting(const std::vector<std::uint32_t>& workers);
  void place_requests(const std::vector<std::uint32_t>& workers, const std::vector<RequestId>& ids,
                      std::optional<std::uint32_t> only_load);
  void place_group(const std::vector<std::uint32_t>& workers, const std::vector<RequestId>& ids,
                   const PrefixGroup& group, std::optional<std::uint32_t> only_load);
  WorkerLoad load_of(std::uint32_t worker) const;
  void hold(const std::vector<RequestId>& ids, PrefixNames& trunk, std::uint32_t from,
            std::uint32_t to, std::uint32_t num_tokens);
  void assign(Ongoing& entry, std::uint32_t worker);
  void tell(std::uint32_t worker, const Frame& frame);
  void expect_move(std::uint32_t from, std::uint32_t to);
  void settled(std::uint32_t worker);
  void move(const Transfers::End& from, const Transfers::End& to, PrefixNames& names,
            std::size_t num_blocks, TransferWay way, std::chrono::milliseconds deadline,
            Transfers::Done done);

  // Trunks from arena and files: bring.cc.
  void deliver(const std::vector<RequestId>& ids, std::uint32_t worker);
  std::optional<TrunkIndex::Found> worth_bringing(const Ongoing& entry, std::uint32_t worker,
                                                  PrefixNames& names);
  std::optional<TrunkIndex::Found> gain_of(const Ongoing& entry, std::uint32_t worker,
                                           PrefixNames& names, const TrunkIndex::Found& found);
  void bring(TrunkId trunk, std::uint32_t worker);
  void arrived(std::pair<TrunkId, std::uint32_t> key, const Result<std::uint32_t>& tokens);
  void release_held(const std::vector<RequestId>& ids, std::uint32_t to);
  TrunkKeeper::Workers workers_for_keeper();
  std::uint32_t recent_min_tokens() const;
  void tend_later();
  void tend(bool all, const std::function<void()>& done);
  void relieve_arena();
  // offers.cc.
  void on_offer(std::uint32_t worker, OfferFrame& offer);
  void keep_offered(const Transfers::End& from, const std::shared_ptr<const OfferFrame>& offer,
                    std::size_t lost_blocks);
  std::optional<TrunkOwner> owner_of(const Hash128& root);
  Hash128 root_of(const GenerateRequest& request, std::uint32_t worker) const;
  Transfers::End end_of(std::uint32_t worker) const;

  // Workers: dispatcher.cc.
  void on_frame(std::uint32_t worker, Frame frame);
  void on_stats(std::uint32_t worker, const EngineStats& before, const EngineStats& now);
  void on_death(std::uint32_t worker, const WorkerSlot::Death& death);
  void replan(RequestId id, bool was_alone, const WorkerSlot::Death& death);
  bool any_ready() const;
  std::optional<Error> hopeless() const;
  void start_others();
  void identify(std::uint32_t worker);
  bool owes(std::uint32_t worker) const;
  void watch_progress();
  void check_progress_later();
  void stop_if_drained();
  void changed() {
    if (on_change) on_change();
  }

  Loop& loop_;
  const PoolOptions& options_;
  EventSink sink_;
  std::vector<std::unique_ptr<WorkerSlot>> slots_;
  std::vector<std::uint32_t> outstanding_;  // requests on, or held for, each worker
  TrunkIndex trunks_;
  Transfers transfers_;
  PeerCopies peers_;
  CostModel model_;
  TrunkFiles files_;
  std::unique_ptr<StoreTier> store_;  // null: no store below the directory
  std::unique_ptr<SpillTier> spill_;  // null: no directory
  TrunkKeeper keeper_;
  std::unique_ptr<const EngineIdentity> engine_;  // null until the first worker is ready
  struct Bring {
    std::vector<RequestId> ids;  // held for it
    std::uint32_t gain_tokens = 0;
    std::unique_ptr<Loop::Timer> timer;
  };
  std::map<std::pair<TrunkId, std::uint32_t>, Bring> brings_;  // by trunk and worker
  RecentTrunks recent_;
  /// Workers that have restored something and not published it yet; what waits until they have.
  std::map<std::uint32_t, std::vector<std::function<void()>>> settling_;
  Loop::Timer tend_timer_;
  bool tending_ = false;
  bool tended_ = false;  // all of it, at the end
  struct Pace {  // of the reports of one worker
    Clock::TimePoint last_report;
    bool busy = false;  // all the time since
  };
  std::vector<Pace> pace_;
  bool first_uploads_;  // the other workers start when the first one has had its try
  bool others_started_ = false;

  Entries entries_;
  std::deque<RequestId> waiting_;
  std::deque<RequestId> quarantine_;
  std::optional<std::uint32_t> reserved_;  // gets nothing new: the next quarantined one runs there
  std::optional<RequestId> running_alone_;

  std::set<std::pair<Clock::TimePoint, RequestId>> deadlines_;
  Loop::Timer deadline_timer_;
  Loop::Timer progress_timer_;
  bool watching_ = false;

  bool draining_ = false;
  bool stopping_ = false;
  bool killed_ = false;  // something had to be killed while draining
  std::function<void(bool)> drained_;
  Loop::Timer drain_timer_;

  std::uint64_t retried_ = 0;
  std::uint64_t resumed_ = 0;
  std::uint64_t deaths_ = 0;
  std::uint64_t spawn_failures_ = 0;
  std::uint64_t tokens_restored_ = 0;
};

}  // namespace thaw::forkpool
