#pragma once

#include <chrono>
#include <string>
#include <vector>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>

#include "coalescer/http/dispatcher.h"
#include "coalescer/openai/completion.h"

namespace thaw::coalescer {

/// A call in flight: takes its events from the dispatcher and wakes the session that answers it.
/// I/O thread only.
class LiveCall final : public EventReceiver {
 public:
  LiveCall(const boost::asio::any_io_executor& executor, Completion completion, bool streamed,
           Dispatcher* dispatcher, Metrics* metrics, Clock::TimePoint received);

  /// Ids of the requests, in the order of the prompts; set right after they were submitted.
  void set_requests(std::vector<RequestId> requests) { requests_ = std::move(requests); }
  const std::vector<RequestId>& requests() const { return requests_; }

  void on_event(std::size_t slot, const GenerateEvent& event) override;
  void on_batch_end() override;

  /// The client hung up: nothing more will be written.
  void hang_up();
  bool hung_up() const { return hung_up_; }
  /// Ends the call with an error of the server's.
  void fail(ApiError error);

  /// Returns when there may be something to do.
  boost::asio::awaitable<void> wait();
  /// Takes the requests out of the backend; no event arrives afterwards.
  void abandon();

  Completion& completion() { return completion_; }

 private:
  void wake();

  Completion completion_;
  bool streamed_;
  Dispatcher* dispatcher_;
  Metrics* metrics_;
  Clock::TimePoint received_;
  boost::asio::steady_timer wake_timer_;
  std::vector<RequestId> requests_;
  bool woken_ = false;
  bool hung_up_ = false;
  bool has_token_ = false;
};

}  // namespace thaw::coalescer
