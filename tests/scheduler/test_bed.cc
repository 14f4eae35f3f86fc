#include "tests/scheduler/test_bed.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace thaw::scheduler {

bool looks_ahead() {
  return std::getenv("THAW_TEST_LOOK_AHEAD") != nullptr;
}

TestBed::TestBed(const Options& options)
    : model_(std::make_unique<FakeModel>(options.num_blocks, options.max_positions)),
      ahead_(options.look_ahead ? std::make_unique<AheadModel>(*model_) : nullptr),
      pool_(std::make_unique<kv::BlockPool>(options.num_blocks)),
      index_(std::make_unique<kv::RadixIndex>(*pool_)),
      scheduler_(std::make_unique<Scheduler>(
          options.scheduler, ahead_ ? static_cast<model::Model&>(*ahead_) : *model_, *index_,
          *pool_, clock_, [this](const GenerateEvent& event) { record(event); })) {
  const auto context = options.scheduler.max_model_len != 0
                           ? options.scheduler.max_model_len
                           : static_cast<std::size_t>(options.max_positions);
  max_tokens_ = std::min<std::size_t>(context, options.num_blocks * kBlockSize);
}

TestBed::~TestBed() {
  if (scheduler_->has_work()) return;
  const auto checked = scheduler_->check_integrity();
  EXPECT_TRUE(checked) << checked.error().message;
}

Result<void> TestBed::try_add(GenerateRequest request) {
  request.id = next_id_++;
  requests_[request.id] = request;
  return scheduler_->add(std::move(request));
}

RequestId TestBed::add(GenerateRequest request) {
  const auto added = try_add(std::move(request));
  EXPECT_TRUE(added) << added.error().message;
  return next_id_ - 1;
}

void TestBed::step(int count) {
  for (int i = 0; i < count; ++i) {
    // A step that only fills the pipeline has nothing to show yet.
    const std::uint64_t before = stats().steps;
    for (int calls = 0; calls < 2 && stats().steps == before; ++calls) {
      const auto stepped = scheduler_->step();
      ASSERT_TRUE(stepped) << stepped.error().message;
    }
    const auto checked = scheduler_->check_integrity();
    ASSERT_TRUE(checked) << checked.error().message;
  }
}

void TestBed::run(int max_steps) {
  for (int i = 0; i < max_steps && scheduler_->has_work(); ++i) {
    step();
    if (::testing::Test::HasFatalFailure()) return;
  }
  ASSERT_FALSE(scheduler_->has_work()) << "still working after " << max_steps << " steps";
  const auto checked = scheduler_->check_integrity();
  ASSERT_TRUE(checked) << checked.error().message;
}

void TestBed::run_and_expect_exact() {
  run();
  for (const auto& [id, outcome] : outcomes_) {
    if (!outcome.usage) continue;
    const GenerateRequest& request = requests_.at(id);
    for (const auto& [index, choice] : outcome.choices) {
      auto tokens = choice.tokens;
      for (const ResumedChoice& resumed : request.resumed) {
        if (resumed.choice_index == index)
          tokens.insert(tokens.begin(), resumed.generated.begin(), resumed.generated.end());
      }
      bool stopped = false;
      const auto expected = expected_tokens(request, index, max_tokens_, &stopped);
      if (choice.finished == FinishReason::kCancelled) {
        ASSERT_LE(tokens.size(), expected.size());
        ASSERT_TRUE(std::equal(tokens.begin(), tokens.end(), expected.begin()))
            << "request " << id << " choice " << index;
        continue;
      }
      ASSERT_EQ(tokens, expected) << "request " << id << " choice " << index;
      ASSERT_EQ(choice.finished, stopped ? FinishReason::kStop : FinishReason::kLength);
    }
  }
}

std::uint64_t TestBed::prefilled_by_usage() const {
  std::uint64_t total = 0;
  for (const auto& [id, outcome] : outcomes_) {
    if (outcome.usage) total += outcome.usage->prompt_tokens - outcome.usage->cached_tokens;
  }
  return total;
}

void TestBed::record(const GenerateEvent& event) {
  const RequestId id = event_request(event);
  const bool known = outcomes_.contains(id);
  Outcome& outcome = outcomes_[id];
  // The first word is that it is queued, or that it never will be.
  if (known || !std::holds_alternative<FailedEvent>(event)) {
    EXPECT_EQ(known, !std::holds_alternative<AdmittedEvent>(event));
  }
  EXPECT_FALSE(outcome.ended()) << "an event after the last one of request " << id;
  if (const auto* scored = std::get_if<PromptLogprobsEvent>(&event)) {
    if (outcome.prompt.empty()) outcome.first_scored = scored->first;
    EXPECT_EQ(scored->first, outcome.first_scored + outcome.prompt.size());
    EXPECT_TRUE(outcome.choices.empty()) << "prompt tokens are scored before any is generated";
    EXPECT_FALSE(scored->tokens.empty());
    outcome.prompt.insert(outcome.prompt.end(), scored->tokens.begin(), scored->tokens.end());
  } else if (const auto* token = std::get_if<TokenEvent>(&event)) {
    const bool first = !outcome.choices.contains(token->choice);
    auto& choice = outcome.choices[token->choice];
    if (first) {
      choice.first_index = token->index;
      choice.first_token_step = stats().steps;
    }
    EXPECT_FALSE(choice.finished);
    EXPECT_EQ(token->index, choice.first_index + choice.tokens.size());
    choice.tokens.push_back(token->token);
  } else if (const auto* finished = std::get_if<FinishedEvent>(&event)) {
    auto& choice = outcome.choices[finished->choice];
    EXPECT_FALSE(choice.finished);
    choice.finished = finished->reason;
    choice.stop_token = finished->stop_token;
  } else if (const auto* completed = std::get_if<CompletedEvent>(&event)) {
    outcome.usage = completed->usage;
    for (const auto& [index, choice] : outcome.choices)
      EXPECT_TRUE(choice.finished);
  } else if (const auto* failed = std::get_if<FailedEvent>(&event)) {
    outcome.error = failed->error;
  }
}

std::vector<TokenId> some_tokens(std::size_t count, std::uint64_t name) {
  std::vector<TokenId> tokens(count);
  std::uint64_t hash = mix(77, name);
  for (TokenId& token : tokens) {
    hash = mix(hash, name);
    token = static_cast<TokenId>(hash % static_cast<std::uint64_t>(kFakeEos));
  }
  // So that two names part at their first token.
  if (count > 0) tokens[0] = static_cast<TokenId>(name % static_cast<std::uint64_t>(kFakeEos));
  return tokens;
}

std::vector<TokenId> operator+(std::vector<TokenId> a, const std::vector<TokenId>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

GenerateRequest make_request(std::vector<TokenId> prompt, std::uint32_t max_tokens,
                             std::optional<std::uint64_t> seed) {
  GenerateRequest request;
  request.prompt = std::move(prompt);
  request.sampling.max_tokens = max_tokens;
  request.sampling.temperature = seed ? 1.0F : 0.0F;
  request.sampling.seed = seed.value_or(0);
  request.sampling.ignore_eos = true;
  return request;
}

}  // namespace thaw::scheduler
