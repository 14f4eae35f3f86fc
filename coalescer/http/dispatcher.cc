#include "coalescer/http/dispatcher.h"

#include <algorithm>
#include <utility>

#include "coalescer/core/plan.h"

namespace thaw::coalescer {
namespace {

constexpr std::size_t kRememberedTenants = 4096;
constexpr std::chrono::milliseconds kShortestRetry{20};
/// Clients do not wait for more than two minutes, and rates change.
constexpr std::chrono::milliseconds kLongestRetry{30000};

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
  std::vector<Submission> submissions;
  submissions.push_back({std::move(requests), receiver});
  auto submitted = submit_all(std::move(submissions));
  if (auto* error = std::get_if<ApiError>(&submitted)) return std::move(*error);
  return std::move(std::get<std::vector<std::vector<RequestId>>>(submitted).front());
}

ApiResult<std::vector<std::vector<RequestId>>> Dispatcher::submit_all(
    std::vector<Submission> submissions) {
  // A call of many prompts is let in as a whole while the queue has any room: it could never run
  // otherwise where it is longer than the queue.
  if (num_queued_ >= max_queued_) {
    ApiError full = to_api_error(make_error(
        Errc::kResourceExhausted, "the queue is full: " + std::to_string(num_queued_) +
                                      " requests wait for their first token; try again later"));
    full.retry_after = next_retry();
    return full;
  }
  const Clock::TimePoint now = clock_->now();
  std::vector<std::vector<RequestId>> all;
  for (Submission& submission : submissions) {
    std::vector<RequestId>& ids = all.emplace_back();
    for (std::size_t slot = 0; slot < submission.requests.size(); ++slot) {
      GenerateRequest& request = submission.requests[slot];
      request.id = next_id_++;
      ids.push_back(request.id);
      recent_tenants_.push_back(request.tenant);
      if (recent_tenants_.size() > kRememberedTenants) recent_tenants_.pop_front();
      const bool is_lone = routes_.empty() && num_preparing_ == 0;
      routes_.emplace(request.id, Route{submission.receiver, slot, now, false});
      ++num_queued_;
      window_.add(std::move(request), now, is_lone);
    }
  }
  return all;
}

bool Dispatcher::put_off() {
  return num_preparing_ > 0 && routes_.size() == window_.size() && window_.extend();
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
  if (!route->second.has_token) {
    --num_queued_;
    on_left_queue(clock_->now());
  }
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
      on_left_queue(clock_->now());
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

void Dispatcher::on_left_queue(Clock::TimePoint now) {
  if (last_left_) {
    const std::chrono::duration<double> gap = now - *last_left_;
    mean_gap_seconds_ += 0.1 * (gap.count() - mean_gap_seconds_);
  }
  // The time in which nobody waits says nothing of how fast the queue moves.
  last_left_ = num_queued_ > 0 ? std::optional(now) : std::nullopt;
}

std::chrono::milliseconds Dispatcher::next_retry() {
  const Clock::TimePoint now = clock_->now();
  double gap = mean_gap_seconds_;
  // It may have come to a halt.
  if (last_left_) gap = std::max(gap, std::chrono::duration<double>(now - *last_left_).count());
  const auto step = std::chrono::duration_cast<Clock::Duration>(std::chrono::duration<double>(gap));
  promised_until_ = std::min(std::max(promised_until_, now) + step, now + kLongestRetry);
  const auto wait = std::chrono::ceil<std::chrono::milliseconds>(promised_until_ - now);
  return std::max(wait, kShortestRetry);
}

std::optional<std::string> Dispatcher::tenant_of(RequestId request) const {
  if (request >= next_id_ || next_id_ - request > recent_tenants_.size()) return std::nullopt;
  return recent_tenants_[recent_tenants_.size() - (next_id_ - request)];
}

}  // namespace thaw::coalescer
