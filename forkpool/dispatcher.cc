#include "forkpool/dispatcher.h"

#include <algorithm>
#include <utility>

#include "engine/base/log.h"

namespace thaw::forkpool {
namespace {

// A worker ends requests at their deadline itself; one that does not is not waited for longer.
constexpr std::chrono::seconds kDeadlineGrace{2};
constexpr std::uint32_t kCrashesBeforeAlone = 2;
// SIGKILL is more often somebody else's doing, and a stream alone keeps all others off its worker.
constexpr std::uint32_t kDeathsBeforeAlone = 4;
constexpr std::uint32_t kMaxDeaths = 32;
// Alone and without a token: a crash is the request's own doing. It takes several kills to blame
// the request, which may be what the machine lacks memory for.
constexpr std::uint32_t kMaxKillsAlone = 5;

template <typename... Handlers>
struct Overloaded : Handlers... {
  using Handlers::operator()...;
};
template <typename... Handlers>
Overloaded(Handlers...) -> Overloaded<Handlers...>;

}  // namespace

Dispatcher::Dispatcher(Loop& loop, const PoolOptions& options, WorkerSlot::Shared shared,
                       std::vector<UniqueFd> kv_pools, kvsnap::Arena* arena, EventSink sink)
    : loop_(loop),
      options_(options),
      sink_(std::move(sink)),
      outstanding_(kv_pools.size(), 0),
      transfers_(loop, arena, trunks_,
                 [this](std::uint32_t worker, const Frame& frame) { tell(worker, frame); }),
      peers_(loop,
             {[this](std::uint32_t worker, const Frame& frame) { tell(worker, frame); },
              [this](std::uint32_t worker) {
                // KV in parts is in nobody's one allocation.
                return options_.tensor_parallel > 1 || !options_.peer_copies
                           ? DeviceMemory{}
                           : slots_[worker]->kv_memory();
              },
              [this](std::uint32_t worker) -> const Ledger& { return slots_[worker]->ledger(); },
              [this](std::uint32_t worker, bool held) {
                if (held)
                  slots_[worker]->hold_memory();
                else
                  slots_[worker]->release_memory();
              }}),
      files_(loop, arena, trunks_,
             options.file_io != nullptr ? *options.file_io
                                        : kvsnap::system_io(kvsnap::IoMode::kDirect)),
      store_(options.spill_store == nullptr || options.spill_directory.empty() || arena == nullptr
                 ? nullptr
                 : std::make_unique<StoreTier>(
                       loop, trunks_, files_.io(), options.spill_store->share(),
                       StoreTier::Options{options.spill_url, options.spill_store_bytes,
                                          options.spill_list_every})),
      spill_(options.spill_directory.empty() || arena == nullptr
                 ? nullptr
                 : std::make_unique<SpillTier>(
                       loop, arena, trunks_, files_, options.spill_directory, options.spill_bytes,
                       [this](std::uint64_t tokens) { return model_.prefill_seconds(tokens); },
                       store_.get())),
      keeper_(loop, {arena, &trunks_, &transfers_, &files_, spill_.get()}, workers_for_keeper()),
      tend_timer_(loop),
      pace_(kv_pools.size()),
      first_uploads_(shared.device_weights != nullptr),
      deadline_timer_(loop),
      progress_timer_(loop),
      drain_timer_(loop) {
  model_ = CostModel::for_device(options.device);
  model_.fork_min_prefix_tokens = options.fork_min_prefix_tokens;
  transfers_.on_measured = [this](std::uint64_t bytes, Clock::Duration took) {
    model_.observe_transfer(bytes, std::chrono::duration<double>(took).count());
  };
  transfers_.part_bytes = options.transfer_part_bytes;
  peers_.on_measured = [this](std::uint64_t bytes, Clock::Duration took) {
    model_.observe_peer(bytes, std::chrono::duration<double>(took).count());
  };
  files_.on_read = [this](std::uint64_t bytes, Clock::Duration took) {
    model_.observe_file(bytes, std::chrono::duration<double>(took).count());
  };
  if (spill_) {
    spill_->on_ready = [this] { pump(); };
    spill_->on_change = [this] { changed(); };
  }
  if (store_) {
    store_->on_change = [this] { changed(); };
    store_->on_settled = [this] { stop_if_drained(); };
    store_->on_idle_look = [this] { model_.doubt_store(); };
    store_->on_fetched = [this](std::uint64_t bytes, Clock::Duration took) {
      model_.observe_store(bytes, std::chrono::duration<double>(took).count());
    };
  }
  const WorkerSlot::Listener listener{
      .on_ready =
          [this](std::uint32_t worker) {
            pace_[worker] = {};
            identify(worker);
            start_others();
            pump();
            changed();
          },
      .on_frame = [this](std::uint32_t worker, Frame frame) { on_frame(worker, std::move(frame)); },
      .on_stats = [this](std::uint32_t worker, const EngineStats& before,
                         const EngineStats& now) { on_stats(worker, before, now); },
      .on_death = [this](std::uint32_t worker,
                         const WorkerSlot::Death& death) { on_death(worker, death); }};
  for (std::uint32_t worker = 0; worker < kv_pools.size(); ++worker) {
    slots_.push_back(std::make_unique<WorkerSlot>(loop, options, shared, worker,
                                                  std::move(kv_pools[worker]), listener));
  }
}

void Dispatcher::identify(std::uint32_t worker) {
  if (engine_ != nullptr) return;
  const ReadyFrame& hello = slots_[worker]->hello();
  engine_ = std::make_unique<const EngineIdentity>(
      EngineIdentity{hello.engine_fingerprint,
                     hello.system_fingerprint,
                     {hello.kv_layout, kBlockSize, hello.block_bytes, 0, 1}});
  if (store_) store_->identify(*engine_);
  if (spill_) spill_->identify(*engine_);
  keeper_.on_engine();
}

void Dispatcher::start() {
  if (spill_) spill_->start();
  slots_.front()->start();
  // On a device the first one uploads the weights and the others share them.
  if (!first_uploads_) start_others();
  changed();
}

void Dispatcher::start_others() {
  if (std::exchange(others_started_, true)) return;
  for (std::size_t worker = 1; worker < slots_.size(); ++worker)
    slots_[worker]->start();
}

void Dispatcher::submit(ForkPlan&& plan) {
  for (PlannedRequest& planned : plan.requests) {
    GenerateRequest& request = planned.request;
    if (refuse(request)) continue;
    const RequestId id = request.id;
    const Ongoing& entry = entries_.try_emplace(id, std::move(request), loop_.now()).first->second;
    waiting_.push_back(id);
    if (const auto deadline = entry.deadline()) deadlines_.emplace(*deadline, id);
  }
  arm_deadline();
  watch_progress();
  pump();
  changed();
}

bool Dispatcher::refuse(const GenerateRequest& request) {
  std::optional<Error> error;
  if (entries_.contains(request.id)) {
    // Failing it would end the one that runs, in the eyes of whoever listens.
    logger("pool")->error("request={} submitted twice: ignored", request.id);
    return true;
  }
  if (const auto checked = check_request(request); !checked) {
    error = checked.error();
  } else if (draining_) {
    error = make_error(Errc::kUnavailable, "the server is shutting down");
  } else if (request.worker && *request.worker >= slots_.size()) {
    error = make_error(Errc::kInvalidArgument, "worker " + std::to_string(*request.worker) +
                                                   " does not exist; there are " +
                                                   std::to_string(slots_.size()));
  } else if (auto reason = hopeless()) {
    error = std::move(reason);
  } else {
    const bool serving = any_ready();
    const std::size_t taken = serving ? entries_.size() : waiting_.size();
    const std::size_t limit =
        options_.max_waiting + (serving ? slots_.size() * options_.max_num_seqs : 0);
    if (taken >= limit) {
      error =
          make_error(Errc::kResourceExhausted, "the pool has " + std::to_string(taken) +
                                                   " requests, as many as it takes" +
                                                   (serving ? "" : " while no worker is ready"));
    }
  }
  if (!error) return false;
  emit(FailedEvent{request.id, std::move(*error)});
  return true;
}

void Dispatcher::cancel(RequestId id) {
  const auto found = entries_.find(id);
  if (found == entries_.end()) return;
  Ongoing& entry = found->second;
  if (std::exchange(entry.cancelled, true)) return;
  if (entry.worker && slots_[*entry.worker]->ready()) {
    slots_[*entry.worker]->send(CancelFrame{id});
    return;
  }
  if (entry.worker) return;  // its worker is dying; it ends when that is certain
  for (GenerateEvent& event : entry.settle_cancelled())
    emit(std::move(event));
  erase(id);
  pump();
  stop_if_drained();
  changed();
}

void Dispatcher::end_choice(RequestId id, std::uint32_t choice) {
  const auto found = entries_.find(id);
  if (found == entries_.end() || !found->second.end_choice(choice)) return;
  Ongoing& entry = found->second;
  if (entry.worker) {  // a dying one's requests are settled when that is certain
    if (slots_[*entry.worker]->ready()) slots_[*entry.worker]->send(CancelFrame{id, choice});
    return;
  }
  for (GenerateEvent& event : entry.settle_ended())
    emit(std::move(event));
  if (entry.num_unfinished() > 0) return;
  erase(id);
  pump();
  stop_if_drained();
  changed();
}

// Not inlined: GCC 12 then warns of members that the variant's move does not touch.
[[gnu::noinline]] void Dispatcher::emit(GenerateEvent event) {
  sink_(std::move(event));
}

void Dispatcher::fail(RequestId id, Error error) {
  emit(FailedEvent{id, std::move(error)});
  erase(id);
}

void Dispatcher::leave(Ongoing& entry) {
  const auto worker = entry.worker ? entry.worker : entry.held_for;
  if (worker && --outstanding_[*worker] == 0) pace_[*worker].busy = false;
  entry.worker.reset();
  entry.held_for.reset();
}

void Dispatcher::erase(RequestId id) {
  const auto found = entries_.find(id);
  Ongoing& entry = found->second;
  if (!entry.worker && !entry.held_for) {
    std::erase(waiting_, id);
    std::erase(quarantine_, id);
  }
  if (running_alone_ == id) {
    running_alone_.reset();
    reserved_.reset();
  }
  leave(entry);
  if (const auto deadline = entry.deadline()) {
    deadlines_.erase({*deadline, id});
    deadlines_.erase({*deadline + kDeadlineGrace, id});
  }
  entries_.erase(found);
}

void Dispatcher::on_events(std::uint32_t worker, std::vector<GenerateEvent> events) {
  bool ended = false;
  for (GenerateEvent& event : events) {
    const RequestId id = event_request(event);
    const auto found = entries_.find(id);
    if (found == entries_.end() || found->second.worker != worker) continue;  // ended already
    const Result<bool> news = found->second.accept(event);
    if (!news) {
      slots_[worker]->kill("broke the protocol: " + news.error().message, false);
      break;
    }
    if (!*news) continue;
    const bool last =
        std::holds_alternative<CompletedEvent>(event) || std::holds_alternative<FailedEvent>(event);
    const bool completed = std::holds_alternative<CompletedEvent>(event);
    emit(std::move(event));
    if (!last) continue;
    if (completed && spill_) recent_.note(found->second.request(), recent_min_tokens());
    erase(id);
    ended = true;
  }
  if (!ended) return;
  pump();
  tend_later();
  stop_if_drained();
  changed();
}

void Dispatcher::arm_deadline() {
  if (deadlines_.empty()) return deadline_timer_.cancel();
  deadline_timer_.start(deadlines_.begin()->first, [this] { on_deadline(); });
}

void Dispatcher::on_deadline() {
  const auto now = loop_.now();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    const auto [when, id] = *deadlines_.begin();
    deadlines_.erase(deadlines_.begin());
    Ongoing& entry = entries_.at(id);
    const bool first_call = entry.deadline() == when;
    if (entry.worker && first_call) {
      deadlines_.emplace(when + kDeadlineGrace, id);
      continue;
    }
    if (entry.worker && slots_[*entry.worker]->ready()) {
      slots_[*entry.worker]->send(CancelFrame{id});
    }
    fail(id, make_error(Errc::kDeadlineExceeded,
                        entry.worker ? "the request's deadline has passed"
                                     : "the request's deadline passed while it waited"));
  }
  arm_deadline();
  pump();
  stop_if_drained();
  changed();
}

void Dispatcher::on_frame(std::uint32_t worker, Frame frame) {
  std::visit(Overloaded{[&](EventsFrame& events) { on_events(worker, std::move(events.events)); },
                        [&](SnapshotDoneFrame& done) {
                          transfers_.on_snapshot_done(worker, done);
                          relieve_arena();
                          changed();
                        },
                        [&](RestoreDoneFrame& done) {
                          if (done.error.empty()) settling_.try_emplace(worker);
                          transfers_.on_restore_done(worker, done);
                          peers_.on_restore_done(worker, done);
                          changed();
                        },
                        [&](SnapshotPartFrame& part) { transfers_.on_snapshot_part(worker, part); },
                        [&](LentFrame& lent) { peers_.on_lent(worker, lent); },
                        [&](OfferFrame& offer) { on_offer(worker, offer); }, [](auto&) {}},
             frame);
}

void Dispatcher::on_stats(std::uint32_t worker, const EngineStats& before, const EngineStats& now) {
  settled(worker);  // these come behind what was published
  Pace& pace = pace_[worker];
  const auto time = loop_.now();
  if (pace.busy) {
    model_.observe_steps(before, now,
                         std::chrono::duration<double>(time - pace.last_report).count());
  }
  pace = {time, outstanding_[worker] > 0};
  changed();
}

void Dispatcher::on_death(std::uint32_t worker, const WorkerSlot::Death& death) {
  settled(worker);
  start_others();
  if (!stopping_) ++(death.spawned ? deaths_ : spawn_failures_);
  if (stopping_ && death.was_ready && !death.expected) killed_ = true;
  transfers_.on_exit({worker, slots_[worker]->generation()});
  peers_.on_exit({worker, slots_[worker]->generation()});
  std::vector<RequestId> orphans;
  for (const auto& [id, entry] : entries_) {
    if (entry.worker == worker) orphans.push_back(id);
  }
  const bool was_alone = orphans.size() == 1 && entries_.at(orphans.front()).alone;
  if (running_alone_ && was_alone) {
    running_alone_.reset();
    reserved_.reset();
  }
  // They go to the head of the queue, in their old order, and are placed together: who shared a
  // trunk on the dead worker shares it again.
  for (auto id = orphans.rbegin(); id != orphans.rend(); ++id)
    replan(*id, was_alone, death);
  if (reserved_ == worker) reserved_.reset();
  if (const auto error = hopeless()) {
    while (!waiting_.empty())
      fail(waiting_.front(), *error);
    while (!quarantine_.empty())
      fail(quarantine_.front(), *error);
  }
  pump();
  stop_if_drained();
  changed();
}

void Dispatcher::replan(RequestId id, bool was_alone, const WorkerSlot::Death& death) {
  Ongoing& entry = entries_.at(id);
  leave(entry);
  entry.alone = false;
  ++entry.deaths;
  if (!death.killed) ++entry.crashes;
  if (stopping_) {
    return fail(id, make_error(Errc::kUnavailable, "the server is shutting down"));
  }
  for (GenerateEvent& event : entry.cancelled ? entry.settle_cancelled() : entry.settle_ended()) {
    emit(std::move(event));
  }
  if (entry.num_unfinished() == 0) return erase(id);
  // What kills its worker does so at the same token again. Who got further since it was sent is
  // hardly to blame for what workers die of.
  if (!entry.prefilling) {
    entry.deaths_alone = 0;
  } else if (was_alone) {
    ++entry.deaths_alone;
  }
  const bool to_blame = entry.deaths_alone >= (death.killed ? kMaxKillsAlone : 1);
  if (was_alone && (to_blame || entry.deaths >= kMaxDeaths)) {
    return fail(id,
                make_error(Errc::kInternal,
                           "its worker died " + std::to_string(entry.deaths) +
                               " times, the last time with nothing else to do: " + death.reason));
  }
  if (const auto checked = check_request(entry.to_send(loop_.now())); !checked) {
    return fail(id, make_error(Errc::kResourceExhausted,
                               "too much was generated to resume: " + checked.error().message));
  }
  if (const auto deadline = entry.deadline(); deadline && *deadline <= loop_.now()) {
    return fail(id, make_error(Errc::kDeadlineExceeded, "the request's deadline has passed"));
  }
  ++retried_;
  if (entry.has_progress()) ++resumed_;
  const bool goes_alone =
      entry.crashes >= kCrashesBeforeAlone || entry.deaths >= kDeathsBeforeAlone;
  auto& queue = goes_alone ? quarantine_ : waiting_;
  if (was_alone && !entry.prefilling) {
    queue.push_back(id);  // it had its turn
  } else {
    queue.push_front(id);
  }
}

bool Dispatcher::any_ready() const {
  return std::ranges::any_of(slots_, [](const auto& slot) { return slot->ready(); });
}

std::optional<Error> Dispatcher::hopeless() const {
  if (!std::ranges::all_of(slots_, [](const auto& slot) { return slot->hopeless(); }))
    return std::nullopt;
  return make_error(Errc::kUnavailable,
                    "no worker starts; the last one " + slots_.front()->last_reason());
}

bool Dispatcher::owes(std::uint32_t worker) const {
  // What is held for it was not sent yet.
  const auto has_it = [&](const auto& entry) { return entry.second.worker == worker; };
  return std::ranges::any_of(entries_, has_it) || transfers_.waits_for(worker) ||
         peers_.waits_for(worker);
}

/// From the first thing that a worker is asked for: a pool with nothing to do has no timer running.
void Dispatcher::watch_progress() {
  if (std::exchange(watching_, true)) return;
  for (const auto& slot : slots_)
    slot->check_progress(options_.stall_limit, false);
  check_progress_later();
}

void Dispatcher::check_progress_later() {
  const auto due = loop_.now() + options_.stall_limit / 4;
  progress_timer_.start(due, [this, due] {
    // So late, all of us stood still: a machine that slept, a container that was paused.
    const bool overslept = loop_.now() > due + options_.stall_limit / 4;
    bool any = !entries_.empty();
    for (std::uint32_t worker = 0; worker < slots_.size(); ++worker) {
      const bool owes_something = owes(worker);
      slots_[worker]->check_progress(options_.stall_limit, owes_something && !overslept);
      any = any || owes_something;
    }
    if (any) return check_progress_later();
    watching_ = false;
  });
}

void Dispatcher::drain(Clock::TimePoint deadline, std::function<void(bool)> done) {
  drained_ = std::move(done);
  draining_ = true;
  keeper_.stop();
  tended_ = deadline <= loop_.now();  // no time to write anything
  drain_timer_.start(deadline, [this] {
    stopping_ = true;
    const Error error = make_error(Errc::kUnavailable, "the server is shutting down");
    while (!entries_.empty()) {
      killed_ = true;
      fail(entries_.begin()->first, error);
    }
    for (const auto& slot : slots_) {
      if (slot->state() != WorkerSlot::State::kStopped) slot->stop_now();
    }
    stop_if_drained();
  });
  stop_if_drained();
  changed();
}

void Dispatcher::stop_if_drained() {
  if (!draining_ || !entries_.empty()) return;
  if (spill_ && !stopping_ && !tended_ && any_ready()) {
    return tend(true, [this] {
      tended_ = true;
      stop_if_drained();
    });
  }
  // What was written last is put into the store, as far as the deadline allows.
  if (store_ && options_.puts_at_end && !stopping_ && !store_->is_settled()) return;
  if (!std::exchange(stopping_, true)) {
    for (const auto& slot : slots_)
      slot->stop();
  }
  const bool all_stopped = std::ranges::all_of(
      slots_, [](const auto& slot) { return slot->state() == WorkerSlot::State::kStopped; });
  if (!all_stopped || !drained_) return;
  drain_timer_.cancel();
  changed();  // before whoever waits looks at it
  std::exchange(drained_, nullptr)(!killed_);
}

PoolStatus Dispatcher::status() const {
  PoolStatus status;
  status.ready = any_ready() && !draining_;
  status.draining = draining_;
  if (const auto error = hopeless()) status.failure = error->message;
  for (const auto& slot : slots_)
    status.workers.push_back(slot->status());
  status.requests_running = entries_.size();
  status.requests_retried = retried_;
  status.requests_resumed = resumed_;
  status.worker_deaths = deaths_;
  status.spawn_failures = spawn_failures_;
  status.arena_bytes = transfers_.arena_bytes();
  status.arena_used_bytes = transfers_.arena_used_bytes();
  status.snapshots = transfers_.num_snapshots();
  transfers_.add_to(status.arena);
  if (spill_) spill_->add_to(status);
  if (store_) store_->add_to(status);
  if (engine_ != nullptr) {
    const std::uint64_t token_bytes = engine_->format.block_bytes / kBlockSize;
    status.arena.crossover_tokens = model_.crossover_tokens(token_bytes, Tier::kArena);
    status.files.crossover_tokens = model_.crossover_tokens(token_bytes, Tier::kFile);
    status.store.crossover_tokens = model_.crossover_tokens(token_bytes, Tier::kStore);
  }
  status.tokens_restored = tokens_restored_;
  status.pins = keeper_.num_pins();
  return status;
}

}  // namespace thaw::forkpool
