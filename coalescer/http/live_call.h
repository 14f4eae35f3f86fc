#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>

#include "coalescer/http/call_record.h"
#include "coalescer/http/dispatcher.h"
#include "coalescer/http/session_service.h"
#include "coalescer/openai/completion.h"

namespace thaw::coalescer {

/// A call in flight: takes its events from the dispatcher and wakes the session that answers it.
/// I/O thread only.
class LiveCall final : public EventReceiver {
 public:
  LiveCall(const boost::asio::any_io_executor& executor, Completion completion, bool streamed,
           Dispatcher* dispatcher, Metrics* metrics, const TextCodec* codec,
           Clock::TimePoint received);

  /// Ids of the requests, in the order of the prompts; set right after they were submitted.
  void set_requests(std::vector<RequestId> requests) { requests_ = std::move(requests); }
  const std::vector<RequestId>& requests() const { return requests_; }

  /// Chat: tokens are written down there too.
  void set_record(std::shared_ptr<CallRecord> record) { record_ = std::move(record); }
  /// A session's turn: it gets the reply as soon as that is whole, whatever its client does.
  void set_turn(std::shared_ptr<RunningTurn> turn) { turn_ = std::move(turn); }
  const std::shared_ptr<CallRecord>& record() const { return record_; }

  void on_event(std::size_t slot, const GenerateEvent& event) override;
  void on_batch_end() override;

  /// Called once for each prompt, as soon as its KV is computed.
  void set_on_prefilled(std::function<void(std::size_t slot)> on_prefilled) {
    on_prefilled_ = std::move(on_prefilled);
  }
  /// Called once the whole answer is known, before its end is written.
  void set_on_answered(std::function<void()> on_answered) { on_answered_ = std::move(on_answered); }
  void answered() {
    if (on_answered_) on_answered_();
  }
  /// A call that is answered together with this one: it ends with it, and this one wakes for it.
  void add_sibling(const std::shared_ptr<LiveCall>& sibling);

  /// The client hung up: nothing more will be written.
  void hang_up();
  bool hung_up() const { return hung_up_; }
  /// Ends the call with an error of the server's.
  void fail(ApiError error);

  /// Returns when there may be something to do.
  boost::asio::awaitable<void> wait();
  /// Takes the requests out of the backend; no event arrives afterwards. A turn whose reply is
  /// whole is kept, any other one is dropped.
  void abandon();

  Completion& completion() { return completion_; }

 private:
  void wake();
  /// The session gets the turn's reply, unless the call failed.
  void end_turn();

  Completion completion_;
  bool streamed_;
  Dispatcher* dispatcher_;
  Metrics* metrics_;
  const TextCodec* codec_;
  Clock::TimePoint received_;
  boost::asio::steady_timer wake_timer_;
  std::vector<RequestId> requests_;
  std::shared_ptr<CallRecord> record_;
  std::shared_ptr<RunningTurn> turn_;
  std::function<void(std::size_t slot)> on_prefilled_;
  std::vector<bool> prefilled_;  // by slot
  std::function<void()> on_answered_;
  std::vector<std::shared_ptr<LiveCall>> siblings_;
  LiveCall* leader_ = nullptr;  // whose sibling this is
  bool woken_ = false;
  bool hung_up_ = false;
  bool has_token_ = false;
};

}  // namespace thaw::coalescer
