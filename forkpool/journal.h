#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/generate.h"
#include "engine/base/result.h"

namespace thaw::forkpool {

/// One request from submit() to its last event: what was asked, and every token that the client has
/// been sent, so that after a death it goes on elsewhere from there. No I/O; events come in, and
/// what the client shall see goes out.
class Ongoing {
 public:
  /// REQUIRES: check_request(request).
  Ongoing(GenerateRequest request, Clock::TimePoint now);

  const GenerateRequest& request() const { return request_; }
  RequestId id() const { return request_.id; }
  std::optional<Clock::TimePoint> deadline() const { return deadline_; }

  /// Judges an event of the worker that has this request. True: forward it (usage is put right).
  /// False: the client has seen it. An error (kProtocol): the worker broke its promises; nothing
  /// was taken.
  Result<bool> accept(GenerateEvent& event);

  /// What a worker is to be sent: the request with the time that is left and, where tokens were
  /// sent before, where each unfinished choice goes on.
  GenerateRequest to_send(Clock::TimePoint now) const;

  /// Tokens or finished choices have been forwarded, so the next to_send() resumes.
  bool has_progress() const;
  /// The caller wants no more of a choice. False: it has ended, or has no token yet, and goes on.
  bool end_choice(std::uint32_t index);
  /// For one that no worker has: choices end here that have all their tokens, or that the caller
  /// wants no more of: what the worker had no time to say. Returns the events to forward; ends with
  /// CompletedEvent if nothing is left to run.
  std::vector<GenerateEvent> settle_ended();
  /// The events that end a cancelled request: each unfinished choice, then completion.
  std::vector<GenerateEvent> settle_cancelled();

  std::uint32_t num_unfinished() const;
  std::uint32_t max_tokens_left() const;

  // Where it is and what happened to it; kept by the dispatcher.
  std::optional<std::uint32_t> worker;  ///< it was sent there
  std::optional<std::uint32_t> held_for;  ///< waits for a snapshot's arrival there
  std::uint32_t deaths = 0;  ///< of workers that had it
  std::uint32_t crashes = 0;  ///< of those, not by SIGKILL from elsewhere
  std::uint32_t deaths_alone = 0;  ///< of workers that had it alone, since it last got a token
  bool alone = false;  ///< nothing else runs where it is
  bool cancelled = false;
  bool prefilling = true;  ///< no token since it was sent
  double prefill_tokens = 0;  ///< its share of what its worker has to compute

 private:
  struct Choice {
    bool active = false;  ///< asked for
    bool finished = false;
    bool stop_token = false;  ///< it ended by one, which counts as generated
    bool unwanted = false;  ///< end_choice()
    std::size_t num_given = 0;  ///< tokens that the caller's `resumed` began with
    std::vector<TokenId> tokens;
  };
  CompletedEvent completed() const;

  GenerateRequest request_;
  std::optional<Clock::TimePoint> deadline_;
  std::vector<Choice> choices_;
  bool admitted_ = false;
  std::uint32_t cached_tokens_ = 0;
  std::uint32_t prompt_scored_ = 0;  ///< rows whose log-probabilities were forwarded
};

}  // namespace thaw::forkpool
