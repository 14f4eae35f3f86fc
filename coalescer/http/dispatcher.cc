#include "coalescer/http/dispatcher.h"

#include <algorithm>
#include <utility>

#include "coalescer/core/plan.h"

namespace thaw::coalescer {
namespace {

constexpr std::size_t kRememberedTenants = 4096;

}  // namespace

Dispatcher::Dispatcher(Clock::Duration window, std::uint32_t max_queued, Backend* backend,
                       ForkHistory* history, Metrics* metrics, const Clock* clock)
    : window_(window),
      max_queued_(max_queued),
      backend_(backend),
      history_(history),
      metrics_(metrics),
      clock_(clock) {}

ApiResult<std::vector<RequestId>> Dispatcher::submit(
    std::vector<GenerateRequest> requests, const std::shared_ptr<EventReceiver>& receiver) {
  // A call of many prompts is let in as a whole while the queue has any room: it could never run
  // otherwise where it is longer than the queue.
  if (num_queued_ >= max_queued_) {
    ApiError full = to_api_error(make_error(
        Errc::kResourceExhausted, "the queue is full: " + std::to_string(num_queued_) +
                                      " requests wait for their first token; try again later"));
    full.retry_after = estimated_wait();
    return full;
  }
  const Clock::TimePoint now = clock_->now();
  std::vector<RequestId> ids;
  for (std::size_t slot = 0; slot < requests.size(); ++slot) {
    GenerateRequest& request = requests[slot];
    request.id = next_id_++;
    ids.push_back(request.id);
    recent_tenants_.push_back(request.tenant);
    if (recent_tenants_.size() > kRememberedTenants) recent_tenants_.pop_front();
    const bool idle = routes_.empty();
    routes_.emplace(request.id, Route{receiver, slot, now, false});
    ++num_queued_;
    window_.add(std::move(request), now, idle);
  }
  return ids;
}

void Dispatcher::flush() {
  std::vector<GenerateRequest> requests = window_.take();
  if (requests.empty()) return;
  history_->record(requests);
  ForkPlan plan = make_plan(std::move(requests));
  ++metrics_->windows;
  metrics_->trunks += plan.trunks.size();
  backend_->submit(std::move(plan));
}

void Dispatcher::cancel(RequestId request) {
  const auto route = routes_.find(request);
  if (route == routes_.end()) return;
  if (window_.remove(request))
    erase(route);
  else
    backend_->cancel(request);
}

void Dispatcher::abandon(RequestId request) {
  const auto route = routes_.find(request);
  if (route == routes_.end()) return;
  route->second.receiver = nullptr;
  cancel(request);
}

void Dispatcher::erase(std::unordered_map<RequestId, Route>::iterator route) {
  if (!route->second.has_token) --num_queued_;
  routes_.erase(route);
}

void Dispatcher::drop_receivers() {
  for (auto& [id, route] : routes_)
    route.receiver = nullptr;
}

void Dispatcher::deliver(const std::vector<GenerateEvent>& events) {
  std::vector<std::shared_ptr<EventReceiver>> woken;
  for (const GenerateEvent& event : events) {
    const auto found = routes_.find(event_request(event));
    if (found == routes_.end()) continue;
    Route& route = found->second;
    if (std::holds_alternative<TokenEvent>(event) && !route.has_token) {
      route.has_token = true;
      --num_queued_;
      const std::chrono::duration<double> wait = clock_->now() - route.submitted;
      mean_wait_seconds_ += 0.1 * (wait.count() - mean_wait_seconds_);
    }
    const std::shared_ptr<EventReceiver> receiver = route.receiver;
    const std::size_t slot = route.slot;
    // Erased first: the receiver may cancel its other requests from within.
    if (std::holds_alternative<CompletedEvent>(event) || std::holds_alternative<FailedEvent>(event))
      erase(found);
    if (receiver == nullptr) continue;
    receiver->on_event(slot, event);
    if (std::find(woken.begin(), woken.end(), receiver) == woken.end()) woken.push_back(receiver);
  }
  for (const auto& receiver : woken)
    receiver->on_batch_end();
}

std::chrono::milliseconds Dispatcher::estimated_wait() const {
  const double seconds = std::clamp(mean_wait_seconds_, 0.1, 30.0);
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
}

std::optional<std::string> Dispatcher::tenant_of(RequestId request) const {
  if (request >= next_id_ || next_id_ - request > recent_tenants_.size()) return std::nullopt;
  return recent_tenants_[recent_tenants_.size() - (next_id_ - request)];
}

}  // namespace thaw::coalescer
