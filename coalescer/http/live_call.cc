#include "coalescer/http/live_call.h"

#include <algorithm>
#include <utility>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>

namespace thaw::coalescer {
namespace {

namespace net = boost::asio;

/// A generation may take long: this bounds only how long a lost wake-up could hurt.
constexpr std::chrono::seconds kLongestWait{5};

}  // namespace

LiveCall::LiveCall(const net::any_io_executor& executor, Completion completion, bool streamed,
                   Dispatcher* dispatcher, Metrics* metrics, const TextCodec* codec,
                   Clock::TimePoint received)
    : completion_(std::move(completion)),
      streamed_(streamed),
      dispatcher_(dispatcher),
      metrics_(metrics),
      codec_(codec),
      received_(received),
      wake_timer_(executor) {}

void LiveCall::on_event(std::size_t slot, const GenerateEvent& event) {
  const bool is_prefilled =
      std::holds_alternative<TokenEvent>(event) || std::holds_alternative<CompletedEvent>(event);
  if (on_prefilled_ && is_prefilled) {
    prefilled_.resize(std::max(prefilled_.size(), slot + 1), false);
    if (!prefilled_[slot]) {
      prefilled_[slot] = true;
      on_prefilled_(slot);
    }
  }
  if (!has_token_ && std::holds_alternative<TokenEvent>(event)) {
    has_token_ = true;
    metrics_->time_to_first_token.observe(std::chrono::steady_clock::now() - received_);
  }
  if (const auto* token = std::get_if<TokenEvent>(&event); token != nullptr && record_ != nullptr) {
    auto& generated = record_->generated;
    if (token->choice < generated.size() && token->index == generated[token->choice].size())
      generated[token->choice].push_back(token->token);
  }
  completion_.on_event(slot, event);
  for (const Completion::Unwanted& unwanted : completion_.take_unwanted()) {
    if (unwanted.choice)
      dispatcher_->end_choice(requests_[unwanted.prompt], *unwanted.choice);
    else
      dispatcher_->cancel(requests_[unwanted.prompt]);
  }
}

void LiveCall::on_batch_end() {
  if (completion_.ended()) end_turn();
  if (completion_.ended() || (streamed_ && completion_.started())) wake();
}

void LiveCall::end_turn() {
  const auto turn = std::exchange(turn_, nullptr);
  if (turn != nullptr && !completion_.error()) turn->finish(*record_, *codec_);
}

void LiveCall::add_sibling(const std::shared_ptr<LiveCall>& sibling) {
  sibling->leader_ = this;
  siblings_.push_back(sibling);
}

void LiveCall::hang_up() {
  hung_up_ = true;
  wake();
}

void LiveCall::fail(ApiError error) {
  for (const auto& sibling : siblings_)
    sibling->fail(error);
  completion_.fail(std::move(error));
  wake();
}

void LiveCall::wake() {
  if (leader_ != nullptr) return leader_->wake();
  woken_ = true;
  wake_timer_.cancel();
}

net::awaitable<void> LiveCall::wait() {
  if (!woken_) {
    wake_timer_.expires_after(kLongestWait);
    co_await wake_timer_.async_wait(net::as_tuple(net::use_awaitable));
  }
  woken_ = false;
}

void LiveCall::abandon() {
  for (const auto& sibling : siblings_) {
    sibling->leader_ = nullptr;  // it may outlive this one
    sibling->abandon();
  }
  siblings_.clear();
  // A client may go once it has read how the reply ended, before the backend's last word.
  if (completion_.choices_ended()) end_turn();
  turn_ = nullptr;
  for (const RequestId request : requests_)
    dispatcher_->abandon(request);
}

}  // namespace thaw::coalescer
