#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/generate.h"
#include "engine/grammar/service.h"
#include "engine/model/model.h"
#include "engine/scheduler/kv_store.h"
#include "engine/scheduler/masks.h"

namespace thaw::scheduler {

struct Request;

enum class SequenceState : std::uint8_t {
  kForking,  ///< nowhere yet: it will start from its leader's row of logits
  kWaiting,  ///< queued, or waiting for another's prefill; holds no blocks
  kPrefilling,
  kDecoding,
  kDone,
};

/// One choice of a request.
struct Sequence {
  /// Someone who attached once this prefill had passed `position`.
  struct Follower {
    RequestId request = 0;
    std::uint32_t position = 0;
  };

  Request* request = nullptr;
  std::uint32_t choice_index = 0;
  SequenceState state = SequenceState::kForking;
  std::vector<TokenId> tokens;  ///< prompt and output, as far as it is known
  std::uint32_t generation_start = 0;
  SequenceKv kv;
  model::DrawnToken next_token;  ///< the last one of num_drawn()
  std::unique_ptr<Constraint> constraint;  ///< null: free

  std::uint64_t ticket = 0;  ///< grows with each entry into the queue
  Sequence* wait_on = nullptr;  ///< the prefill that computes tokens of ours
  std::uint32_t wait_position = 0;  ///< tokens shared with it
  std::vector<Sequence*> waiters;
  std::vector<Follower> followers;

  std::uint32_t computed_once = 0;  ///< positions below were computed or found for this sequence
  std::uint32_t resumed_below = 0;  ///< positions below were computed in an earlier life
  bool has_waited = false;
  bool was_preempted = false;
  bool goes_first = false;  ///< goes on with another's prefill

  std::uint32_t num_tokens() const { return static_cast<std::uint32_t>(tokens.size()); }
  std::uint32_t num_generated() const { return num_tokens() - generation_start; }
  /// Tokens behind `tokens` that steps in flight draw: one from the row of the last token known,
  /// one from each row after it.
  std::uint32_t num_drawn() const {
    return kv.launched < num_tokens() ? 0 : kv.launched - num_tokens() + 1;
  }
  /// Rows that no step has computed or is computing.
  std::uint32_t num_pending() const { return num_tokens() + num_drawn() - kv.launched; }
  /// Whether all of the prompt is computed or in flight: from here on it goes token by token.
  bool is_past_prefill() const {
    return state == SequenceState::kDecoding ||
           (state == SequenceState::kPrefilling && num_drawn() > 0);
  }
  bool is_running() const {
    return state == SequenceState::kPrefilling || state == SequenceState::kDecoding;
  }
  bool is_unfinished_prefill() const {
    return state == SequenceState::kPrefilling || state == SequenceState::kWaiting;
  }
  std::int32_t own_priority() const;
};

/// A call and what it has cost so far.
struct Request {
  GenerateRequest call;
  Hash128 root;
  std::uint64_t arrival = 0;
  std::optional<Clock::TimePoint> deadline;
  std::optional<model::DeviceDraw> draw;  ///< how the device draws, if it can
  std::shared_ptr<grammar::Preparation> preparation;  ///< of its grammar, until it is let in
  std::vector<TokenId> stops;  ///< with a grammar: every token that ends it
  std::vector<std::uint32_t> unwanted;  ///< choices that end as soon as it is let in
  std::vector<std::unique_ptr<Sequence>> choices;
  std::size_t num_unfinished = 0;  ///< choices
  bool started = false;  ///< some choice has left the queue
  /// Prompt tokens computed on this request's account, and the position of the first.
  std::uint32_t charged = 0;
  std::uint32_t charge_begin = std::numeric_limits<std::uint32_t>::max();
  std::uint32_t num_generated = 0;
  std::uint32_t num_scored = 0;  ///< rows whose log-probabilities were sent

  /// Rows that log-probabilities of the prompt are asked for: all but its last one's.
  std::uint32_t num_to_score() const {
    return call.prompt_logprobs < 0 ? 0 : static_cast<std::uint32_t>(call.prompt.size()) - 1;
  }
  Usage usage() const {
    const auto prompt = static_cast<std::uint32_t>(call.prompt.size());
    return {prompt, prompt - std::min(charged, prompt), num_generated};
  }
};

inline std::int32_t Sequence::own_priority() const {
  return request->call.priority;
}

/// The highest (lowest number) of a sequence's own and of all that wait for it.
std::int32_t effective_priority(const Sequence& sequence);

/// Whether `a` keeps its blocks rather than `b` when there are too few: priority, then arrival.
bool outranks(const Sequence& a, const Sequence& b);

}  // namespace thaw::scheduler
