#include <algorithm>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "engine/base/hash.h"
#include "engine/scheduler/scheduler_state.h"

namespace thaw::scheduler {
namespace {

Error invalid(std::string message) {
  return make_error(Errc::kInvalidArgument, std::move(message));
}

Result<void> check_tokens(const std::vector<TokenId>& tokens, int vocab_size) {
  for (TokenId token : tokens) {
    if (token < 0 || token >= vocab_size) {
      return invalid("token id " + std::to_string(token) + " is outside the vocabulary of " +
                     std::to_string(vocab_size));
    }
  }
  return {};
}

}  // namespace

Result<void> Scheduler::State::check(const GenerateRequest& call) const {
  const int vocab_size = model.config().vocab_size;
  if (requests.contains(call.id))
    return invalid("request " + std::to_string(call.id) + " is running already");
  if (call.prompt.empty()) return invalid("the prompt is empty; it needs at least one token");
  if (call.num_choices == 0) return invalid("num_choices is 0; it must be at least 1");
  if (!call.adapter.empty())
    return make_error(Errc::kUnsupported, "adapter '" + call.adapter + "' is not loaded");
  if (auto checked = sampling::validate(call.sampling, vocab_size); !checked) return checked;
  if (auto checked = check_tokens(call.prompt, vocab_size); !checked) return checked;
  for (const ResumedChoice& choice : call.resumed) {
    if (auto checked = check_tokens(choice.generated, vocab_size); !checked) return checked;
    const auto same = [&](const ResumedChoice& other) {
      return other.choice_index == choice.choice_index;
    };
    if (std::count_if(call.resumed.begin(), call.resumed.end(), same) > 1)
      return invalid("choice " + std::to_string(choice.choice_index) + " is resumed twice");
  }
  if (call.prompt_logprobs < -1 || call.prompt_logprobs > sampling::kMaxTopLogprobs) {
    return invalid("prompt_logprobs is " + std::to_string(call.prompt_logprobs) +
                   "; it must be between 0 and " + std::to_string(sampling::kMaxTopLogprobs));
  }
  if (call.prompt_scored >= call.prompt.size()) {
    return invalid("prompt_scored is " + std::to_string(call.prompt_scored) +
                   "; it must be below the prompt's " + std::to_string(call.prompt.size()) +
                   " tokens");
  }
  const bool decodes = call.sampling.max_tokens > 0;
  if (call.prompt.size() + (decodes ? 1 : 0) > max_tokens) {
    const std::size_t pool_tokens = kv.num_blocks() * kBlockSize;
    return invalid("the prompt has " + std::to_string(call.prompt.size()) + " tokens; " +
                   (decodes ? "with one generated token " : "") + "at most " +
                   std::to_string(max_tokens) + " fit the " +
                   (pool_tokens == max_tokens ? "KV pool of " + std::to_string(kv.num_blocks()) +
                                                    " blocks of " + std::to_string(kBlockSize)
                                              : std::string("context")));
  }
  const auto queued = std::count_if(requests.begin(), requests.end(),
                                    [](const auto& entry) { return !entry.second->started; });
  if (static_cast<std::size_t>(queued) >= options.max_waiting) {
    return make_error(Errc::kResourceExhausted,
                      "the queue is full: " + std::to_string(queued) + " requests are waiting");
  }
  return {};
}

Result<void> Scheduler::State::accept(GenerateRequest call) {
  auto owned = std::make_unique<Request>();
  Request& request = *owned;
  request.call = std::move(call);
  const bool is_constrained = !request.call.grammar.empty();
  if (is_constrained) {
    if (auto prepared = prepare(request); !prepared) return prepared;
  }
  request.root = make_cache_root(options.engine_fingerprint, request.call.tenant,
                                 request.call.cache_salt, request.call.adapter);
  request.arrival = next_arrival++;
  request.num_scored = request.call.prompt_scored;
  requests.emplace(request.call.id, std::move(owned));
  if (!options.on_logits && model.can_draw(request.call.sampling) &&
      (!is_constrained || model.max_masked_rows() > 0))
    request.draw = model::DeviceDraw::of(request.call.sampling);
  if (request.call.deadline) {
    request.deadline = clock.now() + *request.call.deadline;
    deadlines.emplace(*request.deadline, request.call.id);
  }
  const auto add_choice = [&](std::uint32_t choice_index) -> Sequence& {
    Sequence& sequence = *request.choices.emplace_back(std::make_unique<Sequence>());
    sequence.request = &request;
    sequence.choice_index = choice_index;
    sequence.generation_start = static_cast<std::uint32_t>(request.call.prompt.size());
    ++request.num_unfinished;
    return sequence;
  };
  if (request.call.resumed.empty()) {
    for (std::uint32_t i = 0; i < request.call.num_choices; ++i)
      add_choice(i);
    Sequence& leader = *request.choices.front();
    leader.tokens = request.call.prompt;
    leader.resumed_below = request.call.prompt_scored;
  }
  for (const ResumedChoice& resumed : request.call.resumed) {
    Sequence& sequence = add_choice(resumed.choice_index);
    sequence.tokens = request.call.prompt;
    sequence.tokens.insert(sequence.tokens.end(), resumed.generated.begin(),
                           resumed.generated.end());
    sequence.resumed_below = sequence.num_tokens() - 1;
  }
  if (is_constrained) {
    preparing.push_back(&request);
  } else {
    enter(request);
  }
  return {};
}

// From here on it waits for its turn.
void Scheduler::State::enter(Request& request) {
  sink(AdmittedEvent{request.call.id, 0});
  if (request.call.resumed.empty()) return enter_queue(*request.choices.front());
  for (const auto& sequence : request.choices) {
    // It may have been one event short of its end when its worker died.
    if (sequence->num_generated() >= request.call.sampling.max_tokens ||
        sequence->num_tokens() >= max_tokens) {
      finish(*sequence, FinishReason::kLength, std::nullopt);
    } else {
      enter_queue(*sequence);
    }
  }
}

void Scheduler::State::enter_queue(Sequence& sequence) {
  sequence.state = SequenceState::kWaiting;
  sequence.ticket = next_ticket++;
  waiting.push_back(&sequence);
  trunks.enter(sequence);
  if (wait_for_prefill(sequence, false) && !std::exchange(sequence.has_waited, true))
    ++stats.trunk_waits;
}

std::uint32_t Scheduler::State::num_shareable(const Sequence& sequence) {
  const Request& request = *sequence.request;
  const std::uint32_t all = sequence.num_tokens() - 1;
  // What is to be scored has to be computed here.
  return request.num_scored < request.num_to_score() ? std::min(request.num_scored, all) : all;
}

bool Scheduler::State::wait_for_prefill(Sequence& sequence, bool running_only) {
  const std::uint32_t shareable = num_shareable(sequence);
  if (shareable < sequence.num_tokens() - 1) return false;
  const auto prefix = std::span(std::as_const(sequence.tokens)).first(shareable);
  return trunks.wait_for_best(sequence, kv.num_alive(sequence.request->root, prefix), running_only);
}

void Scheduler::State::withdraw(Sequence& sequence) {
  const bool was_running = sequence.is_running();
  if (!was_running && sequence.state != SequenceState::kWaiting) return;
  std::erase(was_running ? running : waiting, &sequence);
  // Blocks may be given out again at once: what steps in flight still write to them comes before
  // whatever is launched later.
  if (was_running) abandon_rows(sequence);
  kv.release(sequence.kv);
  if (!sequence.is_unfinished_prefill()) return;
  for (Sequence* waiter : trunks.leave(sequence))
    if (!wait_for_prefill(*waiter, false)) waiter->goes_first = was_running;
}

void Scheduler::State::preempt(Sequence& sequence) {
  ++stats.preemptions;
  withdraw(sequence);
  sequence.was_preempted = true;
  enter_queue(sequence);
}

// By priority; what goes on before what begins; tenants with less in the running set first; then by
// arrival.
Sequence* Scheduler::State::next_to_admit() const {
  if (waiting.empty()) return nullptr;
  std::unordered_map<std::string_view, std::size_t> running_of;
  for (const Sequence* sequence : running)
    ++running_of[sequence->request->call.tenant];
  const auto key_of = [&](const Sequence& sequence) {
    const auto found = running_of.find(sequence.request->call.tenant);
    const bool goes_on = sequence.num_generated() > 0 || sequence.goes_first;
    return std::tuple(effective_priority(sequence), !goes_on,
                      found == running_of.end() ? 0 : found->second, sequence.request->arrival,
                      sequence.choice_index);
  };
  Sequence* best = nullptr;
  decltype(key_of(*best)) best_key;
  for (Sequence* sequence : waiting) {
    if (sequence->wait_on != nullptr) continue;
    const auto key = key_of(*sequence);
    if (best != nullptr && best_key <= key) continue;
    best = sequence;
    best_key = key;
  }
  return best;
}

Result<void> Scheduler::State::admit() {
  while (running.size() < options.max_num_seqs) {
    Sequence* sequence = next_to_admit();
    if (sequence == nullptr) return {};
    const std::span<const TokenId> tokens = sequence->tokens;
    const Hash128& root = sequence->request->root;
    // While it stood in the queue, its prefix may have gone and another may be computing it.
    if (wait_for_prefill(*sequence, true)) {
      if (!std::exchange(sequence->has_waited, true)) ++stats.trunk_waits;
      continue;
    }
    // One position more than the tokens: a prefill must leave room to decode. Who was preempted
    // comes back when the others have some air, else both would take turns.
    const std::size_t headroom = sequence->was_preempted ? running.size() : 0;
    const bool decodes = sequence->request->call.sampling.max_tokens > 0;
    const auto attached = kv.attach(root, tokens.first(num_shareable(*sequence)),
                                    tokens.size() + (decodes ? 1 : 0), headroom, sequence->kv);
    if (!attached) return attached.error();
    if (!*attached) return {};
    start(*sequence);
  }
  return {};
}

void Scheduler::State::start(Sequence& sequence) {
  Request& request = *sequence.request;
  std::erase(waiting, &sequence);
  running.push_back(&sequence);
  request.started = true;
  sequence.goes_first = false;
  const std::uint32_t computed = sequence.kv.computed;
  if (sequence.computed_once == 0) {
    stats.tokens_cached += std::min(computed, sequence.generation_start);
    request.charge_begin = std::min(request.charge_begin, computed);
  }
  sequence.computed_once = std::max(sequence.computed_once, computed);
  sequence.state = SequenceState::kPrefilling;
  trunks.advance(sequence);
  if (sequence.num_pending() == 1 && sequence.num_generated() > 0) {
    // Nothing to prefill: it decodes on. Whoever waits for its very last token no longer does.
    sequence.state = SequenceState::kDecoding;
    trunks.leave(sequence);
  }
}

}  // namespace thaw::scheduler
