#include <algorithm>
#include <string>
#include <utility>

#include "engine/scheduler/scheduler_state.h"

namespace thaw::scheduler {
namespace {

bool contains(std::span<const TokenId> tokens, TokenId token) {
  return std::find(tokens.begin(), tokens.end(), token) != tokens.end();
}

}  // namespace

// The KV of the rows is there now.
void Scheduler::State::take_rows(const PlannedRows& rows, std::span<const float> logits,
                                 TokenId drawn) {
  Sequence& sequence = *rows.sequence;
  const bool prefilling = sequence.state == SequenceState::kPrefilling;
  if (prefilling || sequence.kv.computed % kBlockSize == 0)
    kv.publish(sequence.request->root, sequence.tokens, sequence.kv);
  if (prefilling) trunks.advance(sequence);
  Request& request = *sequence.request;
  const std::size_t scored = rows.num_scored * static_cast<std::size_t>(model.config().vocab_size);
  if (rows.num_scored > 0) {
    if (auto done = score(request, rows, logits.first(scored)); !done)
      return fail(request, done.error());
    logits = logits.subspan(scored);
  }
  if (request.call.sampling.max_tokens == 0 && sequence.kv.computed == sequence.num_tokens()) {
    for (const auto& choice : request.choices)
      finish(*choice, FinishReason::kLength, std::nullopt);
    return;
  }
  if (!rows.samples) return;
  if (prefilling) {
    trunks.leave(sequence);  // it is past everything that anyone could wait for
    sequence.state = SequenceState::kDecoding;
  }
  if (rows.is_drawn) return take_drawn(sequence, drawn);
  sample(sequence, logits);
  if (prefilling) fork_from(sequence, logits);
}

// Each row is what the model expects of the token behind it.
Result<void> Scheduler::State::score(Request& request, const PlannedRows& rows,
                                     std::span<const float> logits) {
  const auto width = static_cast<std::size_t>(model.config().vocab_size);
  PromptLogprobsEvent event{request.call.id, request.num_scored + 1, {}};
  for (std::uint32_t row = 0; row < rows.num_scored; ++row) {
    auto scored =
        sampler.score(logits.subspan(row * width, width), request.call.prompt[event.first + row],
                      request.call.prompt_logprobs);
    if (!scored) return scored.error();
    event.tokens.push_back(std::move(*scored));
  }
  request.num_scored += rows.num_scored;
  sink(std::move(event));
  return {};
}

void Scheduler::State::take_drawn(Sequence& sequence, TokenId token) {
  if (token < 0) {
    return fail(
        *sequence.request,
        make_error(Errc::kInternal, "the logits of token " + std::to_string(sequence.num_tokens()) +
                                        " hold NaN or an infinity, or its mask bars all of them"));
  }
  accept_token(sequence, sampling::SampledToken{token, 0.0F, {}});
}

void Scheduler::State::sample(Sequence& sequence, std::span<const float> logits) {
  Request& request = *sequence.request;
  if (options.on_logits) {
    options.on_logits(request.call.id, sequence.choice_index, sequence.num_generated(), logits);
  }
  sampling::SamplingContext context{sequence.tokens, sequence.generation_start,
                                    sequence.choice_index, model.config().eos_token_ids};
  if (sequence.constraint) {
    const auto mask = mask_of(sequence);
    if (!mask) return fail(request, mask.error());
    context.mask = *mask;
  }
  auto sampled = sampler.sample(logits, request.call.sampling, context);
  if (!sampled) return fail(request, sampled.error());
  accept_token(sequence, std::move(*sampled));
}

// The other choices start from the same row. They attach like anyone else: by the index.
void Scheduler::State::fork_from(Sequence& leader, std::span<const float> logits) {
  Request& request = *leader.request;
  for (const auto& choice : request.choices) {
    if (choice->state != SequenceState::kForking) continue;
    choice->tokens = request.call.prompt;
    choice->computed_once = choice->num_tokens();
    sample(*choice, logits);
    if (choice->state == SequenceState::kForking) enter_queue(*choice);
  }
}

void Scheduler::State::accept_token(Sequence& sequence, sampling::SampledToken sampled) {
  Request& request = *sequence.request;
  const SamplingParams& params = request.call.sampling;
  ++request.num_generated;
  ++stats.tokens_decoded;
  const bool stops =
      sequence.constraint
          ? contains(request.stops, sampled.token)
          : contains(params.stop_token_ids, sampled.token) ||
                (!params.ignore_eos && contains(model.config().eos_token_ids, sampled.token));
  if (sequence.constraint && !stops) {
    if (auto accepted = sequence.constraint->matcher->accept(sampled.token); !accepted)
      return fail(request, accepted.error());
  }
  if (stops) return finish(sequence, FinishReason::kStop, sampled.token);
  sink(TokenEvent{request.call.id, sequence.choice_index, sequence.num_generated(), sampled.token,
                  sampled.logprob, std::move(sampled.top_logprobs)});
  sequence.tokens.push_back(sampled.token);
  if (sequence.num_generated() >= params.max_tokens || sequence.num_tokens() >= max_tokens)
    finish(sequence, FinishReason::kLength, std::nullopt);
}

void Scheduler::State::finish(Sequence& sequence, FinishReason reason,
                              std::optional<TokenId> stop_token) {
  Request& request = *sequence.request;
  // The tail too, so that a next turn finds prompt and answer.
  if (sequence.is_running() && sequence.kv.computed > 0)
    kv.publish(request.root, sequence.tokens, sequence.kv);
  withdraw(sequence);
  sequence.state = SequenceState::kDone;
  sink(FinishedEvent{request.call.id, sequence.choice_index, reason, stop_token});
  if (--request.num_unfinished > 0) return;
  sink(CompletedEvent{request.call.id, request.usage()});
  forget(request);
}

void Scheduler::State::cancel(Request& request) {
  if (request.preparation) sink(AdmittedEvent{request.call.id, 0});  // the first word on it
  pass_charges_on(request);
  for (const auto& sequence : request.choices) {
    if (sequence->state != SequenceState::kDone)
      finish(*sequence, FinishReason::kCancelled, std::nullopt);
  }
}

// Before its first token others may wait for its row of logits, and nobody can have read a reason
// to end it.
void Scheduler::State::end_choice(Request& request, std::uint32_t choice) {
  if (request.preparation) return request.unwanted.push_back(choice);
  const auto found = std::ranges::find(request.choices, choice, &Sequence::choice_index);
  if (found == request.choices.end()) return;
  Sequence& sequence = **found;
  const bool has_begun = sequence.state != SequenceState::kForking && sequence.num_generated() > 0;
  if (!has_begun || sequence.state == SequenceState::kDone) return;
  finish(sequence, FinishReason::kCancelled, std::nullopt);
}

void Scheduler::State::fail(Request& request, Error error) {
  pass_charges_on(request);
  for (const auto& sequence : request.choices) {
    if (sequence->state == SequenceState::kDone) continue;
    withdraw(*sequence);
    sequence->state = SequenceState::kDone;
  }
  sink(FailedEvent{request.call.id, std::move(error)});
  forget(request);
}

void Scheduler::State::forget(Request& request) {
  if (request.deadline) deadlines.erase({*request.deadline, request.call.id});
  std::erase(preparing, &request);
  const auto found = requests.find(request.call.id);
  ended.push_back(std::move(found->second));
  requests.erase(found);
}

// A trunk is paid for by a request that got something for it: where one ends with nothing, the
// first that shares what it computed takes the charge over.
void Scheduler::State::pass_charges_on(Request& request) {
  if (request.num_generated > 0 || request.charged == 0) return;
  for (const auto& sequence : request.choices) {
    const auto [heir, position] = heir_of(*sequence);
    if (heir == nullptr) continue;
    const std::uint32_t shared = position - std::min(position, request.charge_begin);
    const std::uint32_t moved = std::min(request.charged, shared);
    request.charged -= moved;
    heir->charged += moved;
    heir->charge_begin = std::min(heir->charge_begin, request.charge_begin);
    auto& followers = heir->choices.front()->followers;
    followers.insert(followers.end(), sequence->followers.begin(), sequence->followers.end());
    return;
  }
}

std::pair<Request*, std::uint32_t> Scheduler::State::heir_of(const Sequence& sequence) const {
  for (const Sequence::Follower& follower : sequence.followers) {
    const auto found = requests.find(follower.request);
    if (found != requests.end() && found->second.get() != sequence.request)
      return {found->second.get(), follower.position};
  }
  const Sequence* first = nullptr;
  for (const Sequence* waiter : sequence.waiters) {
    if (waiter->request == sequence.request) continue;
    if (first == nullptr || waiter->ticket < first->ticket) first = waiter;
  }
  if (first == nullptr) return {nullptr, 0};
  return {first->request, first->wait_position};
}

void Scheduler::State::expire_deadlines() {
  if (deadlines.empty()) return;
  const Clock::TimePoint now = clock.now();
  while (!deadlines.empty() && deadlines.begin()->first <= now) {
    Request& request = *requests.at(deadlines.begin()->second);
    fail(request,
         make_error(Errc::kDeadlineExceeded,
                    "the deadline of " +
                        std::to_string(
                            request.call.deadline.value_or(std::chrono::milliseconds(0)).count()) +
                        " ms has passed after " + std::to_string(request.num_generated) +
                        " generated tokens"));
  }
}

}  // namespace thaw::scheduler
