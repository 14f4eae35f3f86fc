// The half of Dispatcher that decides where requests run.

#include <algorithm>
#include <utility>

#include "engine/base/hash.h"
#include "engine/base/log.h"
#include "forkpool/dispatcher.h"

namespace thaw::forkpool {
namespace {

// A worker publishes what it has restored right behind the word that it has.
constexpr std::chrono::milliseconds kSettling{50};
// Past this a transfer is not worth waiting for: the branches prefill their trunk instead.
constexpr std::chrono::seconds kTransferDeadline{10};

}  // namespace

void Dispatcher::pump() {
  run_quarantine();
  if (waiting_.empty()) return;
  // Who came first after a restart must find what was there before it.
  if (spill_ && !spill_->ready()) return;
  const std::vector<std::uint32_t> workers = candidates();
  if (!workers.empty()) place_waiting(workers);
}

/// One quarantined request at a time, on a worker that has nothing else and gets nothing else.
void Dispatcher::run_quarantine() {
  if (running_alone_) return;
  reserved_.reset();
  for (auto id = quarantine_.begin(); id != quarantine_.end(); ++id) {
    Ongoing& entry = entries_.at(*id);
    for (std::uint32_t worker = 0; worker < slots_.size(); ++worker) {
      const bool usable =
          slots_[worker]->ready() && entry.request().worker.value_or(worker) == worker;
      // The one with the least to do is free first, and stays the choice: it gets nothing new.
      if (usable && (!reserved_ || outstanding_[worker] < outstanding_[*reserved_])) {
        reserved_ = worker;
      }
    }
    if (!reserved_) continue;
    if (outstanding_[*reserved_] != 0) return;
    entry.alone = true;
    running_alone_ = *id;
    logger("pool")->warn("request={} worker={} runs alone after {} deaths", *id, *reserved_,
                         entry.deaths);
    assign(entry, *reserved_);
    quarantine_.erase(id);
    return;
  }
}

std::size_t Dispatcher::room(std::uint32_t worker) const {
  const std::size_t limit = std::size_t{options_.max_num_seqs} + options_.max_waiting;
  return limit - std::min<std::size_t>(limit, outstanding_[worker]);
}

std::vector<std::uint32_t> Dispatcher::candidates() const {
  std::vector<std::uint32_t> workers;
  for (std::uint32_t worker = 0; worker < slots_.size(); ++worker) {
    if (slots_[worker]->ready() && reserved_ != worker && room(worker) > 0) {
      workers.push_back(worker);
    }
  }
  return workers;
}

void Dispatcher::place_waiting(const std::vector<std::uint32_t>& workers) {
  std::size_t total_room = 0;
  for (const std::uint32_t worker : workers)
    total_room += room(worker);
  std::vector<RequestId> taken;
  std::vector<std::vector<RequestId>> pinned(workers.size());
  std::deque<RequestId> left;
  for (const RequestId id : std::exchange(waiting_, {})) {
    const auto wanted = entries_.at(id).request().worker;
    if (wanted) {
      const auto found = std::ranges::find(workers, *wanted);
      const auto index = static_cast<std::size_t>(found - workers.begin());
      if (found != workers.end() && pinned[index].size() < room(*wanted)) {
        pinned[index].push_back(id);
      } else {
        left.push_back(id);
      }
    } else if (taken.size() < total_room) {
      taken.push_back(id);
    } else {
      left.push_back(id);
    }
  }
  waiting_ = std::move(left);

  if (workers.size() == 1) {  // nothing to decide
    taken.insert(taken.begin(), pinned.front().begin(), pinned.front().end());
    return deliver(taken, workers.front());
  }
  for (std::uint32_t load = 0; load < workers.size(); ++load)
    place_requests(workers, pinned[load], load);
  place_requests(workers, taken, std::nullopt);
}

/// Places requests group by group; with `only_load` all of them on that worker.
void Dispatcher::place_requests(const std::vector<std::uint32_t>& workers,
                                const std::vector<RequestId>& ids,
                                std::optional<std::uint32_t> only_load) {
  std::vector<const GenerateRequest*> requests;
  requests.reserve(ids.size());
  for (const RequestId id : ids)
    requests.push_back(&entries_.at(id).request());
  for (const PrefixGroup& group : group_by_prefix(requests))
    place_group(workers, ids, group, only_load);
}

WorkerLoad Dispatcher::load_of(std::uint32_t worker) const {
  WorkerLoad load;
  load.worker = worker;
  load.kv_bytes_per_token = slots_[worker]->hello().block_bytes / kBlockSize;
  load.lends = peers_.lends(worker);
  for (const auto& [id, entry] : entries_) {
    if (entry.worker != worker && entry.held_for != worker) continue;
    load.sequences += entry.num_unfinished();
    if (entry.prefilling) load.queued_prefill_tokens += entry.prefill_tokens;
  }
  return load;
}

Hash128 Dispatcher::root_of(const GenerateRequest& request, std::uint32_t worker) const {
  return make_cache_root(slots_[worker]->hello().engine_fingerprint, request.tenant,
                         request.cache_salt, request.adapter);
}

Transfers::End Dispatcher::end_of(std::uint32_t worker) const {
  const WorkerSlot& slot = *slots_[worker];
  return {{worker, slot.generation()}, slot.hello().kv_layout, slot.hello().block_bytes};
}

void Dispatcher::place_group(const std::vector<std::uint32_t>& workers,
                             const std::vector<RequestId>& ids, const PrefixGroup& prefixes,
                             std::optional<std::uint32_t> only_load) {
  const auto request_of = [&](std::size_t member) -> const GenerateRequest& {
    return entries_.at(ids[member]).request();
  };
  std::vector<WorkerLoad> loads;
  loads.reserve(workers.size());
  for (const std::uint32_t worker : workers)
    loads.push_back(load_of(worker));

  // What is alive: by the ledger, and by what workers are computing for others right now. All
  // workers run one model, so one root names a prefix on each of them.
  const GenerateRequest& first = request_of(prefixes.units.front().members.front());
  PrefixNames trunk(root_of(first, workers.front()), first.prompt);
  Group group;
  // All that a single unit shares is its trunk: a lone request's prompt may be alive elsewhere too.
  group.trunk_tokens =
      prefixes.units.size() == 1 ? prefixes.units.front().shared_tokens : prefixes.trunk_tokens;
  group.only_load = only_load;
  group.alive_tokens.assign(workers.size(), 0);
  group.published_tokens.assign(workers.size(), 0);
  for (const PrefixUnit& prefix : prefixes.units) {
    const GenerateRequest& sample = request_of(prefix.members.front());
    PrefixNames names(trunk, sample.prompt, group.trunk_tokens);
    Unit unit;
    unit.sequences = 0;
    unit.decode_tokens = 0;
    unit.prefill_tokens = prefix.shared_tokens - group.trunk_tokens;
    for (const std::size_t member : prefix.members) {
      const Ongoing& entry = entries_.at(ids[member]);
      unit.prefill_tokens +=
          static_cast<double>(entry.request().prompt.size()) - prefix.shared_tokens;
      unit.sequences += entry.num_unfinished();
      unit.decode_tokens = std::max(unit.decode_tokens, entry.max_tokens_left());
    }
    for (std::size_t i = 0; i < workers.size(); ++i) {
      const std::uint32_t published = slots_[workers[i]]->ledger().alive_tokens(names);
      std::uint32_t alive = published;
      for (const auto& [id, entry] : entries_) {
        if (entry.worker == workers[i]) {
          alive = std::max(alive, shared_tokens(sample, entry.request()));
        }
      }
      const std::uint32_t trunk_alive = std::min(alive, group.trunk_tokens);
      group.alive_tokens[i] = std::max(group.alive_tokens[i], trunk_alive);
      group.published_tokens[i] =
          std::max(group.published_tokens[i],
                   std::min(published, group.trunk_tokens / kBlockSize *
                                           static_cast<std::uint32_t>(kBlockSize)));
      unit.alive_tokens.push_back(std::min(alive, prefix.shared_tokens) - trunk_alive);
    }
    group.units.push_back(std::move(unit));
    if (&prefix == &prefixes.units.front()) trunk = std::move(names);
  }

  const Placement placement = place(model_, loads, group);
  for (std::uint32_t i = 0; i < workers.size(); ++i) {
    std::vector<RequestId> mine;
    for (std::size_t unit = 0; unit < group.units.size(); ++unit) {
      if (placement.unit_load[unit] != i) continue;
      for (const std::size_t member : prefixes.units[unit].members) {
        Ongoing& entry = entries_.at(ids[member]);
        // Its share of the trunk and of what its unit shares is charged to the first that comes.
        entry.prefill_tokens = mine.empty() ? group.trunk_tokens - group.alive_tokens[i] +
                                                  group.units[unit].prefill_tokens -
                                                  group.units[unit].alive_tokens[i]
                                            : static_cast<double>(entry.request().prompt.size()) -
                                                  prefixes.units[unit].shared_tokens;
        mine.push_back(ids[member]);
      }
    }
    const auto transfer = std::ranges::find(placement.transfers, i, &Placement::Transfer::to);
    if (transfer != placement.transfers.end()) {
      hold(mine, trunk, workers[transfer->from], workers[i],
           group.published_tokens[transfer->from]);
      continue;
    }
    deliver(mine, workers[i]);
  }
}

/// Copies a trunk from one worker to another and lets the requests wait for it; whatever comes of
/// it, they run afterwards.
void Dispatcher::hold(const std::vector<RequestId>& ids, PrefixNames& trunk, std::uint32_t from,
                      std::uint32_t to, std::uint32_t num_tokens) {
  expect_move(from, to);
  for (const RequestId id : ids) {
    entries_.at(id).held_for = to;
    ++outstanding_[to];
  }
  logger("pool")->debug("trunk tokens={} from={} to={} for={}", num_tokens, from, to, ids.size());
  const Hash128 name = trunk.name(num_tokens / kBlockSize - 1);
  const GenerateRequest& sample = entries_.at(ids.front()).request();
  const TrunkOwner owner{sample.tenant, sample.cache_salt, sample.model, sample.adapter};
  move(end_of(from), end_of(to), trunk, num_tokens / kBlockSize, TransferWay::kBest,
       kTransferDeadline, [this, ids, to, name, owner](const Result<std::uint32_t>& /*arrived*/) {
         if (Trunk* known = trunks_.find(name)) known->set_owner(owner);
         release_held(ids, to);
       });
}

/// At once, where it serves.
void Dispatcher::tell(std::uint32_t worker, const Frame& frame) {
  if (slots_[worker]->ready()) slots_[worker]->send_at_once(frame);
  watch_progress();
}

/// A move begins. What a device copies in a millisecond is waited for awake, here and at both ends:
/// each sleeper on the way would oversleep by tens of microseconds. A CPU has better to do.
void Dispatcher::expect_move(std::uint32_t from, std::uint32_t to) {
  if (options_.device == "cpu") return;
  loop_.stay_awake(loop_.now() + kMoveAwake);
  for (const std::uint32_t worker : {from, to})
    tell(worker, ExpectFrame{from});
}

/// Copies KV from one worker to another. Where the straight way fails and both still serve, the
/// arena is tried.
void Dispatcher::move(const Transfers::End& from, const Transfers::End& to, PrefixNames& names,
                      std::size_t num_blocks, TransferWay way, std::chrono::milliseconds deadline,
                      Transfers::Done done) {
  const auto bytes = static_cast<double>(num_blocks * from.block_bytes);
  const bool straight = way == TransferWay::kPeer ||
                        (way == TransferWay::kBest && peers_.possible(from, to) &&
                         model_.peer_move_seconds(bytes) < model_.arena_move_seconds(bytes));
  if (!straight) return transfers_.start(from, to, names, num_blocks, deadline, std::move(done));
  if (way == TransferWay::kPeer)
    return peers_.start(from, to, names, num_blocks, deadline, std::move(done));
  const auto whole = names.first_tokens(num_blocks);
  const auto tokens = std::make_shared<std::vector<TokenId>>(whole.begin(), whole.end());
  const auto until = loop_.now() + deadline;
  peers_.start(from, to, names, num_blocks, deadline,
               [this, from, to, tokens, root = names.root(), until,
                done = std::move(done)](Result<std::uint32_t> arrived) {
                 const auto left =
                     std::chrono::duration_cast<std::chrono::milliseconds>(until - loop_.now());
                 const auto serves = [&](const kvsnap::Holder& process) {
                   const WorkerSlot& slot = *slots_[process.worker];
                   return slot.ready() && slot.generation() == process.generation;
                 };
                 if (arrived || left.count() <= 0 || !serves(from.process) || !serves(to.process)) {
                   return done(std::move(arrived));
                 }
                 PrefixNames again(root, *tokens);
                 transfers_.start(from, to, again, again.num_blocks(), left, done);
               });
}

/// What they waited for is there, or will not come: they run.
void Dispatcher::release_held(const std::vector<RequestId>& ids, std::uint32_t to) {
  std::vector<RequestId> still;
  for (const RequestId id : ids) {
    const auto found = entries_.find(id);
    if (found == entries_.end() || found->second.held_for != to) continue;
    leave(found->second);
    still.push_back(id);
  }
  for (auto id = still.rbegin(); id != still.rend(); ++id) {
    if (slots_[to]->ready() && reserved_ != to) {
      assign(entries_.at(*id), to);
    } else {
      waiting_.push_front(*id);
    }
  }
  pump();
  changed();
}

void Dispatcher::assign(Ongoing& entry, std::uint32_t worker) {
  GenerateRequest request = entry.to_send(loop_.now());
  entry.worker = worker;
  entry.prefilling = true;
  ++outstanding_[worker];
  slots_[worker]->send(SubmitFrame{std::move(request)});
}

/// What the worker has restored is in its ledger, or it is gone.
void Dispatcher::settled(std::uint32_t worker) {
  const auto settling = settling_.extract(worker);
  if (settling.empty()) return;
  for (const auto& task : settling.mapped())
    task();
}

void Dispatcher::transfer(const GenerateRequest& like, std::uint32_t from, std::uint32_t to,
                          TransferWay way, std::chrono::milliseconds deadline,
                          Transfers::Done done) {
  for (const std::uint32_t worker : {from, to}) {
    if (worker >= slots_.size()) {
      return done(make_error(Errc::kInvalidArgument, "worker " + std::to_string(worker) +
                                                         " does not exist; there are " +
                                                         std::to_string(slots_.size())));
    }
    if (!slots_[worker]->ready()) {
      return done(
          make_error(Errc::kUnavailable, "worker " + std::to_string(worker) + " is not ready"));
    }
  }
  if (from == to) {
    return done(
        make_error(Errc::kInvalidArgument, "from and to are both worker " + std::to_string(from)));
  }
  if (const auto settling = settling_.find(from); settling != settling_.end()) {
    // What it has restored is not in its ledger yet, but is about to be.
    auto timer = std::make_shared<Loop::Timer>(loop_);
    timer->start(loop_.now() + kSettling, [this, from] { settled(from); });
    settling->second.emplace_back([this, like, from, to, way, deadline, done = std::move(done),
                                   timer] { transfer(like, from, to, way, deadline, done); });
    return;
  }
  expect_move(from, to);
  PrefixNames names(root_of(like, from), like.prompt);
  const std::uint32_t alive = slots_[from]->ledger().alive_tokens(names);
  if (alive == 0) {
    return done(make_error(Errc::kNotFound,
                           "worker " + std::to_string(from) + " holds no block of that prompt"));
  }
  move(end_of(from), end_of(to), names, alive / kBlockSize, way, deadline, std::move(done));
  changed();
}

}  // namespace thaw::forkpool
