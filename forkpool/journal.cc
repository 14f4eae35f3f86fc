#include "forkpool/journal.h"

#include <algorithm>
#include <utility>

namespace thaw::forkpool {

Ongoing::Ongoing(GenerateRequest request, Clock::TimePoint now)
    : request_(std::move(request)), prompt_scored_(request_.prompt_scored) {
  if (request_.deadline) deadline_ = now + *request_.deadline;
  choices_.resize(request_.num_choices);
  for (Choice& choice : choices_)
    choice.active = request_.resumed.empty();
  for (ResumedChoice& resumed : request_.resumed) {
    Choice& choice = choices_[resumed.choice_index];
    choice.active = true;
    choice.num_given = resumed.generated.size();
    choice.tokens = std::move(resumed.generated);
  }
  request_.resumed.clear();  // made anew by to_send()
}

Result<bool> Ongoing::accept(GenerateEvent& event) {
  const auto violation = [this](const std::string& what) {
    return make_error(Errc::kProtocol, "request " + std::to_string(id()) + ": " + what);
  };
  if (std::holds_alternative<AdmittedEvent>(event)) return !std::exchange(admitted_, true);
  if (const auto* scored = std::get_if<PromptLogprobsEvent>(&event)) {
    const std::size_t last = scored->first + scored->tokens.size();
    if (request_.prompt_logprobs < 0 || scored->first != prompt_scored_ + 1 ||
        last > request_.prompt.size()) {
      return violation("log-probabilities of prompt tokens " + std::to_string(scored->first) +
                       " to " + std::to_string(last) + ", after those of " +
                       std::to_string(prompt_scored_));
    }
    prompt_scored_ += static_cast<std::uint32_t>(scored->tokens.size());
    return true;
  }
  if (auto* token = std::get_if<TokenEvent>(&event)) {
    if (token->choice >= choices_.size() || !choices_[token->choice].active) {
      return violation("a token for choice " + std::to_string(token->choice) +
                       ", which was not asked for");
    }
    Choice& choice = choices_[token->choice];
    if (token->index < choice.tokens.size()) return false;
    if (choice.finished || token->index > choice.tokens.size()) {
      return violation("choice " + std::to_string(token->choice) + " got token " +
                       std::to_string(token->index) +
                       (choice.finished ? std::string(" after its end")
                                        : ", not " + std::to_string(choice.tokens.size())));
    }
    choice.tokens.push_back(token->token);
    prefilling = false;
    return true;
  }
  if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
    if (finished->choice >= choices_.size() || !choices_[finished->choice].active) {
      return violation("an end of choice " + std::to_string(finished->choice) +
                       ", which was not asked for");
    }
    Choice& choice = choices_[finished->choice];
    if (choice.finished) {
      return violation("choice " + std::to_string(finished->choice) + " ended twice");
    }
    choice.finished = true;
    choice.stop_token = finished->stop_token.has_value();
    prefilling = false;
    return true;
  }
  if (auto* done = std::get_if<CompletedEvent>(&event)) {
    if (num_unfinished() != 0) {
      return violation("completed with " + std::to_string(num_unfinished()) +
                       " choices unfinished");
    }
    cached_tokens_ = done->usage.cached_tokens;
    *done = completed();
  }
  return true;
}

GenerateRequest Ongoing::to_send(Clock::TimePoint now) const {
  GenerateRequest request = request_;
  request.prompt_scored = prompt_scored_;
  if (deadline_) {
    request.deadline =
        std::max(std::chrono::milliseconds(1),
                 std::chrono::duration_cast<std::chrono::milliseconds>(*deadline_ - now));
  }
  const bool all_fresh = std::ranges::all_of(choices_, [](const Choice& choice) {
    return choice.active && !choice.finished && choice.tokens.empty();
  });
  if (all_fresh) return request;
  for (std::uint32_t index = 0; index < choices_.size(); ++index) {
    const Choice& choice = choices_[index];
    if (choice.active && !choice.finished) request.resumed.push_back({index, choice.tokens});
  }
  return request;
}

bool Ongoing::has_progress() const {
  return std::ranges::any_of(choices_, [](const Choice& choice) {
    return choice.finished || choice.tokens.size() > choice.num_given;
  });
}

bool Ongoing::end_choice(std::uint32_t index) {
  if (index >= choices_.size()) return false;
  Choice& choice = choices_[index];
  if (!choice.active || choice.finished || choice.tokens.empty()) return false;
  choice.unwanted = true;
  return true;
}

std::vector<GenerateEvent> Ongoing::settle_ended() {
  std::vector<GenerateEvent> events;
  for (std::uint32_t index = 0; index < choices_.size(); ++index) {
    Choice& choice = choices_[index];
    if (!choice.active || choice.finished) continue;
    // Where nothing is generated, its end is all that it says.
    const std::uint32_t max_tokens = request_.sampling.max_tokens;
    const bool is_whole = max_tokens != 0 && choice.tokens.size() >= max_tokens;
    if (!is_whole && !choice.unwanted) continue;
    choice.finished = true;
    const auto reason = is_whole ? FinishReason::kLength : FinishReason::kCancelled;
    events.emplace_back(FinishedEvent{id(), index, reason, std::nullopt});
  }
  if (num_unfinished() == 0) events.emplace_back(completed());
  return events;
}

std::vector<GenerateEvent> Ongoing::settle_cancelled() {
  std::vector<GenerateEvent> events;
  for (std::uint32_t index = 0; index < choices_.size(); ++index) {
    Choice& choice = choices_[index];
    if (!choice.active || choice.finished) continue;
    choice.finished = true;
    events.emplace_back(FinishedEvent{id(), index, FinishReason::kCancelled, std::nullopt});
  }
  events.emplace_back(completed());
  return events;
}

std::uint32_t Ongoing::num_unfinished() const {
  return static_cast<std::uint32_t>(std::ranges::count_if(
      choices_, [](const Choice& choice) { return choice.active && !choice.finished; }));
}

std::uint32_t Ongoing::max_tokens_left() const {
  std::size_t left = 0;
  for (const Choice& choice : choices_) {
    if (!choice.active || choice.finished) continue;
    const std::size_t max_tokens = request_.sampling.max_tokens;
    left = std::max(left, max_tokens - std::min(max_tokens, choice.tokens.size()));
  }
  return static_cast<std::uint32_t>(left);
}

// Tokens are counted as they were forwarded, over every process that had the request; a worker
// knows only its own part. How much of the prompt was cached is what the admission that completed
// said: those before it left no word.
CompletedEvent Ongoing::completed() const {
  Usage usage;
  usage.prompt_tokens = static_cast<std::uint32_t>(request_.prompt.size());
  usage.cached_tokens = std::min(cached_tokens_, usage.prompt_tokens);
  for (const Choice& choice : choices_) {
    usage.generated_tokens += static_cast<std::uint32_t>(choice.tokens.size() - choice.num_given) +
                              (choice.stop_token ? 1U : 0U);
  }
  return {id(), usage};
}

}  // namespace thaw::forkpool
