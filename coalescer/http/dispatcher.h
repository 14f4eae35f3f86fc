#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "coalescer/core/backend.h"
#include "coalescer/core/history.h"
#include "coalescer/core/window.h"
#include "coalescer/http/metrics.h"
#include "coalescer/openai/api_error.h"
#include "engine/base/clock.h"

namespace thaw::coalescer {

/// Takes the events of the requests that it submitted.
class EventReceiver {
 public:
  virtual ~EventReceiver() = default;
  /// `slot`: which of the submitted requests.
  virtual void on_event(std::size_t slot, const GenerateEvent& event) = 0;
  /// After all events that came together.
  virtual void on_batch_end() = 0;
};

/// Between HTTP calls and the backend: numbers requests, collects them in windows, makes the plans,
/// routes the events back. Has no thread, no timer and no lock: the I/O thread calls everything and
/// wakes at deadline().
class Dispatcher {
 public:
  /// All pointers must outlive the dispatcher.
  Dispatcher(Clock::Duration window, std::uint32_t max_queued, Backend* backend,
             ForkHistory* history, Metrics* metrics, const Clock* clock);

  /// Puts the requests into the window; gives their ids, or the 429 of a full queue.
  ApiResult<std::vector<RequestId>> submit(std::vector<GenerateRequest> requests,
                                           const std::shared_ptr<EventReceiver>& receiver);

  /// Requests of one receiver.
  struct Submission {
    std::vector<GenerateRequest> requests;
    std::shared_ptr<EventReceiver> receiver;
  };
  /// The same for several receivers, all of them or none.
  ApiResult<std::vector<std::vector<RequestId>>> submit_all(std::vector<Submission> submissions);

  /// While it lives, a call is on its way that will be submitted or refused.
  class Preparation {
   public:
    explicit Preparation(Dispatcher* dispatcher) : dispatcher_(dispatcher) {
      ++dispatcher_->num_preparing_;
    }
    ~Preparation() { --dispatcher_->num_preparing_; }
    Preparation(const Preparation&) = delete;
    Preparation& operator=(const Preparation&) = delete;

   private:
    Dispatcher* dispatcher_;
  };

  /// Asks the backend to end a request; its last event still arrives, unless it had not been sent.
  void cancel(RequestId request);
  /// Backend::end_choice().
  void end_choice(RequestId request, std::uint32_t choice) {
    backend_->end_choice(request, choice);
  }
  /// The same for a receiver that wants no more events.
  void abandon(RequestId request);

  /// When flush() is due; nullopt while the window is empty.
  std::optional<Clock::TimePoint> deadline() const { return window_.deadline(); }
  /// At the deadline: whether it was put off, because the pool has nothing to do but what the
  /// window holds, and calls are being prepared that had better begin with that.
  bool put_off();
  /// Sends the window to the backend as one fork plan.
  void flush();

  /// Events from the backend, in its order. Events of unknown requests are dropped.
  void deliver(const std::vector<GenerateEvent>& events);

  /// Requests that the backend has not ended yet, the window's included.
  std::size_t num_in_flight() const { return routes_.size(); }
  /// Of these, requests without a token yet.
  std::size_t num_queued() const { return num_queued_; }
  /// Lets all receivers go, at the end of the server.
  void drop_receivers();

  /// When to come back who is refused now: requests leave the queue one by one at a measured rate,
  /// and each one refused is given a place behind those refused before it.
  std::chrono::milliseconds next_retry();

  /// Tenant of a recent request; nullopt once it has been forgotten.
  std::optional<std::string> tenant_of(RequestId request) const;

 private:
  struct Route {
    std::shared_ptr<EventReceiver> receiver;  // null once abandoned
    std::size_t slot = 0;
    Clock::TimePoint submitted;
    bool has_token = false;
  };

  void erase(std::unordered_map<RequestId, Route>::iterator route);
  void on_left_queue(Clock::TimePoint now);

  Window window_;
  std::uint32_t max_queued_;
  Backend* backend_;
  ForkHistory* history_;
  Metrics* metrics_;
  const Clock* clock_;
  RequestId next_id_ = 1;
  std::unordered_map<RequestId, Route> routes_;
  std::size_t num_queued_ = 0;  // routes without a token yet
  std::size_t num_preparing_ = 0;
  std::deque<std::string> recent_tenants_;  // of the ids just below next_id_
  double mean_gap_seconds_ = 0.1;  // moving average of the time between first tokens
  std::optional<Clock::TimePoint> last_left_;  // the queue, while others stayed
  Clock::TimePoint promised_until_;  // to those who were refused
};

}  // namespace thaw::coalescer
