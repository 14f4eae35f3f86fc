#include "forkpool/model_pool.h"

#include <algorithm>
#include <utility>

#include "engine/base/log.h"
#include "forkpool/model_pool_impl.h"
#include "forkpool/protocol.h"

namespace thaw::forkpool {
namespace {

std::vector<std::string> names_of(const std::vector<ModelSpec>& models) {
  std::vector<std::string> names;
  names.reserve(models.size());
  for (const ModelSpec& model : models)
    names.push_back(model.name);
  return names;
}

}  // namespace

ModelPool::ModelPool(const ModelPoolOptions& options, std::vector<ModelSpec> models,
                     StartSlotPool start, EventSink sink, const Clock* clock)
    : impl_(std::make_unique<Impl>(options, names_of(models))) {
  impl_->start = std::move(start);
  impl_->sink = std::move(sink);
  impl_->clock = clock;
  impl_->began = clock->now();
  for (ModelSpec& model : models)
    static_cast<void>(add(std::move(model)));
  for (std::size_t slot = 0; slot < impl_->slots.size(); ++slot)
    impl_->slots[slot].thread = std::thread([impl = impl_.get(), slot] { impl->run_slot(slot); });
  impl_->planner = std::thread([impl = impl_.get()] { impl->run_planner(); });
}

ModelPool::~ModelPool() {
  shutdown(std::chrono::milliseconds(0));
}

Result<void> ModelPool::add(ModelSpec model) {
  const std::scoped_lock lock(impl_->mutex);
  if (const auto found = impl_->models.find(model.name); found != impl_->models.end()) {
    return make_error(
        Errc::kInvalidArgument,
        "model `" + model.name +
            (found->second.leaving ? "` was removed, but its last requests are still being answered"
                                   : "` is in the pool already; choose another name"));
  }
  impl_->schedule.add(model.name);
  const std::string name = model.name;
  impl_->models[name].spec = std::make_shared<const ModelSpec>(std::move(model));
  impl_->replan(impl_->clock->now());
  return {};
}

Result<void> ModelPool::remove(const std::string& name) {
  const std::scoped_lock lock(impl_->mutex);
  if (!impl_->schedule.remove(name))
    return make_error(Errc::kNotFound, "no model `" + name + "` is in the pool");
  impl_->models.at(name).leaving = true;
  impl_->replan(impl_->clock->now());
  return {};
}

Result<std::chrono::duration<double>> ModelPool::wait_loaded(const std::string& name,
                                                             std::chrono::milliseconds deadline) {
  Impl& impl = *impl_;
  const auto until = std::chrono::steady_clock::now() + deadline;
  std::unique_lock lock(impl.mutex);
  const auto began = impl.clock->now();
  const auto found = impl.models.find(name);
  if (found == impl.models.end() || found->second.leaving)
    return make_error(Errc::kNotFound, "no model `" + name + "` is in the pool");
  impl.wait_for_slot(found->second, began);
  ++found->second.callers;  // the model stays as long as somebody waits for it
  ++impl.num_callers;
  impl.update_waiting(name);
  impl.replan(began);
  // With a short quantum the slot may have gone on before this thread wakes: that it came counts.
  const auto came = [&, loads = found->second.loads] {
    return impl.schedule.open_slot(name).has_value() || found->second.loads != loads;
  };
  const auto refusal = [&] { return impl.schedule.refusal(name, impl.clock->now()); };
  impl.changed.wait_until(lock, until, [&] { return came() || refusal() || impl.stopping; });
  const bool loaded = came();
  const auto reason = refusal();
  const bool stopping = impl.stopping;
  const auto took = impl.clock->now() - began;
  --found->second.callers;
  --impl.num_callers;
  impl.update_waiting(name);
  impl.replan(impl.clock->now());
  if (loaded) return std::chrono::duration<double>(took);
  if (stopping) return make_error(Errc::kUnavailable, "the server is shutting down");
  if (reason) return make_error(Errc::kUnavailable, *reason);
  return make_error(Errc::kDeadlineExceeded,
                    "model `" + name + "` had no slot within " + std::to_string(deadline.count()) +
                        " ms; it is still waiting for one if requests of it do");
}

void ModelPool::submit(ForkPlan plan) {
  const std::scoped_lock lock(impl_->mutex);
  const auto now = impl_->clock->now();
  std::map<std::size_t, ForkPlan> plans;
  for (PlannedRequest& planned : plan.requests)
    impl_->take(std::move(planned.request), now, plans);
  for (auto& [slot, part] : plans)
    impl_->slots[slot].pool->submit(std::move(part));
  impl_->replan(now);
}

void ModelPool::cancel(RequestId request) {
  const std::scoped_lock lock(impl_->mutex);
  const auto found = impl_->entries.find(request);
  if (found == impl_->entries.end()) return;
  Impl::Entry& entry = found->second;
  if (std::exchange(entry.journal.cancelled, true)) return;
  if (entry.slot) return impl_->slots[*entry.slot].pool->cancel(request);
  const auto now = impl_->clock->now();
  for (GenerateEvent& event : entry.journal.settle_cancelled())
    impl_->sink(std::move(event));
  impl_->erase(request, now);
  impl_->replan(now);
}

void ModelPool::end_choice(RequestId request, std::uint32_t choice) {
  const std::scoped_lock lock(impl_->mutex);
  const auto found = impl_->entries.find(request);
  if (found == impl_->entries.end() || !found->second.journal.end_choice(choice)) return;
  Impl::Entry& entry = found->second;
  if (entry.slot) return impl_->slots[*entry.slot].pool->end_choice(request, choice);
  const auto now = impl_->clock->now();
  for (GenerateEvent& event : entry.journal.settle_ended())
    impl_->sink(std::move(event));
  if (entry.journal.num_unfinished() > 0) return;
  impl_->erase(request, now);
  impl_->replan(now);
}

void ModelPool::keep(KeepTrunk trunk, TrunkDone done) {
  impl_->about_trunk(&SlotPool::keep, std::move(trunk), std::move(done));
}

void ModelPool::save(SaveTrunk trunk, TrunkDone done) {
  impl_->about_trunk(&SlotPool::save, std::move(trunk), std::move(done));
}

void ModelPool::load(LoadTrunk trunk, TrunkDone done) {
  impl_->about_trunk(&SlotPool::load, std::move(trunk), std::move(done));
}

void ModelPool::release(const PinId& pin) {
  const std::scoped_lock lock(impl_->mutex);
  for (const Impl::Slot& slot : impl_->slots)
    if (slot.pool != nullptr) slot.pool->release(pin);
}

PoolStatus ModelPool::status() const {
  const std::scoped_lock lock(impl_->mutex);
  return impl_->status(impl_->clock->now());
}

void ModelPool::replan() {
  const std::scoped_lock lock(impl_->mutex);
  impl_->replan(impl_->clock->now());
}

void ModelPool::shutdown(std::chrono::milliseconds deadline) {
  {
    std::unique_lock lock(impl_->mutex);
    if (impl_->stopping) return;
    impl_->draining = true;
    impl_->changed.wait_for(lock, deadline, [&] { return impl_->entries.empty(); });
    impl_->stopping = true;
    const auto now = impl_->clock->now();
    while (!impl_->entries.empty())
      impl_->fail(impl_->entries.begin()->first,
                  make_error(Errc::kUnavailable, "the server is shutting down"), now);
    impl_->changed.notify_all();
    impl_->new_jobs.notify_all();
  }
  impl_->planner.join();
  impl_->end_slots();
}

template <typename Trunk>
void ModelPool::Impl::about_trunk(void (SlotPool::*what)(Trunk, TrunkDone), Trunk trunk,
                                  TrunkDone done) {
  const std::string model = trunk.owner.model;
  {
    const std::scoped_lock lock(mutex);
    for (std::size_t slot = 0; slot < slots.size(); ++slot) {
      if (schedule.slots()[slot].model != model || !slots[slot].up || slots[slot].pool == nullptr)
        continue;
      return (slots[slot].pool.get()->*what)(std::move(trunk), std::move(done));
    }
  }
  done(make_error(Errc::kUnavailable, "model `" + model + "` has no slot now, and with it no KV"));
}

// --- Requests.

std::optional<Error> ModelPool::Impl::refuse(const GenerateRequest& request,
                                             Clock::TimePoint now) const {
  if (const auto checked = check_request(request); !checked) return checked.error();
  if (draining) return make_error(Errc::kUnavailable, "the server is shutting down");
  const auto model = models.find(request.model);
  if (model == models.end() || model->second.leaving)
    return make_error(Errc::kNotFound, "the model `" + request.model + "` is not served any more");
  if (const auto reason = schedule.refusal(request.model, now))
    return make_error(Errc::kUnavailable, *reason);
  if (model->second.waiting.size() >= options.max_waiting) {
    return make_error(Errc::kResourceExhausted,
                      std::to_string(model->second.waiting.size()) + " requests of model `" +
                          request.model + "` wait for a slot, as many as may; try again later");
  }
  return std::nullopt;
}

void ModelPool::Impl::take(GenerateRequest request, Clock::TimePoint now,
                           std::map<std::size_t, ForkPlan>& plans) {
  const RequestId id = request.id;
  if (entries.contains(id)) {
    logger("pool")->error("request={} submitted twice: ignored", id);
    return;
  }
  if (auto error = refuse(request, now)) {
    sink(FailedEvent{id, std::move(*error)});
    return;
  }
  Model& model = models.at(request.model);
  ++model.requests;
  if (request.deadline) ++num_with_deadline;
  const std::string name = request.model;
  Entry& entry =
      entries.emplace(id, Entry{Ongoing(std::move(request), now), std::nullopt}).first->second;
  if (const auto slot = schedule.open_slot(name)) {
    entry.slot = slot;
    occupy(*slot, now);
    // Which requests share what the slot's own pool finds out anew.
    plans[*slot].requests.push_back({entry.journal.to_send(now), -1});
    return;
  }
  wait_for_slot(model, now);
  model.waiting.push_back(id);
  update_waiting(name);
}

void ModelPool::Impl::on_event(std::size_t slot, std::uint64_t generation, GenerateEvent event) {
  const std::scoped_lock lock(mutex);
  if (slots[slot].generation != generation) return;
  const RequestId id = event_request(event);
  const auto found = entries.find(id);
  if (found == entries.end() || found->second.slot != slot) return;
  const auto news = found->second.journal.accept(event);
  if (!news) {
    logger("pool")->error("slot={} {}", slot, news.error().message);
    return;
  }
  if (!*news) return;
  const bool last =
      std::holds_alternative<CompletedEvent>(event) || std::holds_alternative<FailedEvent>(event);
  sink(std::move(event));
  if (!last) return;
  const auto now = clock->now();
  erase(id, now);
  replan(now);
}

void ModelPool::Impl::occupy(std::size_t slot, Clock::TimePoint now) {
  schedule.began(slot, now);
  if (!slots[slot].busy_since) slots[slot].busy_since = now;
}

void ModelPool::Impl::erase(RequestId id, Clock::TimePoint now) {
  const auto found = entries.find(id);
  const Entry& entry = found->second;
  if (entry.journal.request().deadline) --num_with_deadline;
  if (entry.slot) {
    Slot& slot = slots[*entry.slot];
    schedule.ended(*entry.slot, now);
    if (schedule.slots()[*entry.slot].running == 0 && slot.busy_since) {
      slot.busy_seconds += std::chrono::duration<double>(now - *slot.busy_since).count();
      slot.busy_since.reset();
    }
  } else {
    const std::string& name = entry.journal.request().model;
    std::erase(models.at(name).waiting, id);
    update_waiting(name);
  }
  entries.erase(found);
  if (entries.empty()) changed.notify_all();
}

void ModelPool::Impl::fail(RequestId id, Error error, Clock::TimePoint now) {
  sink(FailedEvent{id, std::move(error)});
  erase(id, now);
}

/// Call before somebody begins to wait.
void ModelPool::Impl::wait_for_slot(Model& model, Clock::TimePoint now) {
  if (model.waiting.empty() && model.callers == 0) model.waiting_since = now;
}

void ModelPool::Impl::update_waiting(const std::string& name) {
  const Model& model = models.at(name);
  schedule.set_waiting(name, model.waiting.size() + model.callers, model.waiting_since);
}

bool ModelPool::Impl::send_waiting(std::size_t slot, Clock::TimePoint now) {
  const std::string& name = schedule.slots()[slot].model;
  Model& model = models.at(name);
  if (model.waiting.empty()) return false;
  ForkPlan plan;
  for (const RequestId id : std::exchange(model.waiting, {})) {
    Entry& entry = entries.at(id);
    entry.slot = slot;
    occupy(slot, now);
    plan.requests.push_back({entry.journal.to_send(now), -1});
  }
  update_waiting(name);
  slots[slot].pool->submit(std::move(plan));
  return true;
}

void ModelPool::Impl::fail_waiting(const std::string& name, const Error& error,
                                   Clock::TimePoint now) {
  const auto model = models.find(name);
  if (model == models.end()) return;
  while (!model->second.waiting.empty())
    fail(model->second.waiting.front(), error, now);
}

void ModelPool::Impl::fail_expired(Clock::TimePoint now) {
  if (num_with_deadline == 0) return;
  std::vector<RequestId> expired;
  for (const auto& [name, model] : models)
    for (const RequestId id : model.waiting)
      if (const auto deadline = entries.at(id).journal.deadline(); deadline && *deadline <= now)
        expired.push_back(id);
  for (const RequestId id : expired)
    fail(id,
         make_error(Errc::kDeadlineExceeded,
                    "the request's deadline passed while it waited for its model's slot"),
         now);
}

std::optional<Clock::TimePoint> ModelPool::Impl::next_deadline() const {
  std::optional<Clock::TimePoint> next;
  if (num_with_deadline == 0) return next;
  for (const auto& [name, model] : models) {
    for (const RequestId id : model.waiting) {
      const auto deadline = entries.at(id).journal.deadline();
      if (deadline && (!next || *deadline < *next)) next = deadline;
    }
  }
  return next;
}

}  // namespace thaw::forkpool
