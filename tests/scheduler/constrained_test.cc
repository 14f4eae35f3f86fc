// Requests with grammars among free ones, over the fake model: one step in flight, or two.

#include <algorithm>
#include <regex>
#include <string>

#include "tests/scheduler/ascii_texts.h"
#include "tests/scheduler/test_bed.h"

namespace thaw::scheduler {
namespace {

class ConstrainedTest : public ::testing::Test {
 protected:
  TestBed::Options options(std::size_t num_blocks = 1024) {
    TestBed::Options options;
    options.num_blocks = num_blocks;
    options.scheduler.grammars = &grammars_;
    return options;
  }
  static GenerateRequest constrained(std::uint64_t name, const std::string& pattern,
                                     std::uint32_t max_tokens = 40, bool seeded = true) {
    GenerateRequest request =
        make_request(some_tokens(5 + name % 30, name), max_tokens,
                     seeded ? std::optional<std::uint64_t>(name) : std::nullopt);
    request.grammar = regex_grammar(pattern);
    return request;
  }
  std::string text_of(const std::vector<TokenId>& tokens) const {
    std::string text;
    for (const TokenId token : tokens)
      text += texts_->text(static_cast<std::size_t>(token));
    return text;
  }
  /// Alone, cold, one step in flight: what a choice has to be everywhere.
  std::vector<TokenId> alone(const GenerateRequest& request, std::uint32_t choice = 0) {
    TestBed::Options own = options();
    own.look_ahead = false;
    TestBed bed(own);
    GenerateRequest single = request;
    single.num_choices = 1;
    if (single.resumed.empty()) single.resumed = {{choice, {}}};
    const RequestId id = bed.add(single);
    bed.run();
    EXPECT_TRUE(bed.outcome(id).usage) << bed.outcome(id).error.value_or(Error()).message;
    return bed.outcome(id).choices.at(choice).tokens;
  }
  static void expect_free(const TestBed& bed, RequestId id) {
    EXPECT_EQ(bed.outcome(id).tokens(), expected_tokens(bed.request(id), 0, bed.max_tokens()));
  }

  std::shared_ptr<const TokenTexts> texts_ = ascii_texts(kFakeVocab, '0', {kFakeEos});
  grammar::Service grammars_{texts_, kFakeVocab, {kFakeEos}};
};

TEST_F(ConstrainedTest, TextsAreOfTheGrammarAndEndWithIt) {
  TestBed bed(options());
  std::vector<RequestId> ids;
  for (std::uint64_t name = 0; name < 12; ++name) {
    GenerateRequest request = constrained(name, "[A-Z]{3}[0-9]{2,6}", 40, name % 3 != 0);
    request.sampling.ignore_eos = name % 2 == 0;
    ids.push_back(bed.add(request));
  }
  bed.run();
  for (const RequestId id : ids) {
    const Outcome::Choice& choice = bed.outcome(id).choices.at(0);
    EXPECT_EQ(choice.finished, FinishReason::kStop);
    EXPECT_EQ(choice.stop_token, kFakeEos);
    const std::string text = text_of(choice.tokens);
    EXPECT_TRUE(std::regex_match(text, std::regex("[A-Z]{3}[0-9]{2,6}"))) << text;
    // Where the text could go on, ignore_eos made it; where it could not, nothing does.
    if (bed.request(id).sampling.ignore_eos) {
      EXPECT_EQ(text.size(), 9U) << text;
    }
  }
  EXPECT_EQ(bed.stats().grammars_compiled, 1U);
  EXPECT_EQ(bed.stats().grammar_cache_hits, 11U);
  EXPECT_GE(bed.stats().grammar_masks, 12U * 6U);
}

TEST_F(ConstrainedTest, BatchesChangeNeitherConstrainedNorFreeRows) {
  TestBed bed(options());
  std::vector<RequestId> free;
  std::vector<RequestId> bound;
  for (std::uint64_t name = 0; name < 10; ++name) {
    free.push_back(bed.add(make_request(some_tokens(3 + name * 7, 100 + name), 60,
                                        name % 2 == 0 ? std::optional(name) : std::nullopt)));
    bound.push_back(bed.add(constrained(name, name % 2 == 0 ? "([a-n]+[0-9] ?)*" : "(AB|C[DEF])+G",
                                        60, name % 3 != 0)));
  }
  bed.run();
  for (const RequestId id : free)
    expect_free(bed, id);
  for (const RequestId id : bound)
    EXPECT_EQ(bed.outcome(id).tokens(), alone(bed.request(id)));
  if (looks_ahead()) {
    EXPECT_GT(bed.ahead().num_masked(), 100U);
  }
}

TEST_F(ConstrainedTest, WhereTheModelTakesNoMasksTheHostSamples) {
  TestBed::Options ahead = options();
  ahead.look_ahead = true;
  TestBed masked(ahead);
  TestBed hosted(ahead);
  const_cast<AheadModel&>(hosted.ahead()).set_max_masked_rows(0);
  for (std::uint64_t name = 0; name < 6; ++name) {
    const GenerateRequest request = constrained(name, "[a-n0-9]{10,20}");
    const RequestId id = masked.add(request);
    ASSERT_EQ(hosted.add(request), id);
    masked.add(make_request(some_tokens(9, name), 20, name));
    hosted.add(make_request(some_tokens(9, name), 20, name));
  }
  masked.run();
  hosted.run();
  EXPECT_GT(masked.ahead().num_masked(), 0U);
  EXPECT_EQ(hosted.ahead().num_masked(), 0U);
  for (const auto& [id, outcome] : masked.outcomes())
    EXPECT_EQ(outcome.tokens(), hosted.outcome(id).tokens()) << id;
}

TEST_F(ConstrainedTest, MoreLogitRowsThanMasksAreServedToo) {
  TestBed::Options ahead = options();
  ahead.look_ahead = true;
  TestBed bed(ahead);
  const_cast<AheadModel&>(bed.ahead()).set_max_masked_rows(4);
  std::vector<RequestId> ids;
  for (std::uint64_t name = 0; name < 4; ++name) {
    ids.push_back(bed.add(constrained(name, "[a-n]{5,30}")));
    expect_free(bed, [&] {
      const RequestId id = bed.add(make_request(some_tokens(9, 50 + name), 5 + 5 * name, name));
      bed.step(3);
      bed.run();
      return id;
    }());
    for (std::uint64_t other = 0; other < name; ++other)
      bed.add(make_request(some_tokens(9, 70 + 10 * name + other), 12, other));
    bed.add(constrained(20 + name, "[a-n]{5,30}"));
    bed.run();
  }
  for (const RequestId id : ids)
    EXPECT_EQ(bed.outcome(id).tokens(), alone(bed.request(id)));
}

TEST_F(ConstrainedTest, ChoicesForkTheGrammar) {
  TestBed bed(options());
  GenerateRequest request = constrained(7, "[A-Z]+(0[a-n]{2,5}|1[0-9]{3})*");
  request.num_choices = 5;
  const RequestId id = bed.add(request);
  bed.run();
  std::vector<std::vector<TokenId>> different;
  for (std::uint32_t choice = 0; choice < 5; ++choice) {
    const auto& tokens = bed.outcome(id).choices.at(choice).tokens;
    EXPECT_EQ(tokens, alone(request, choice)) << choice;
    different.push_back(tokens);
  }
  std::ranges::sort(different);
  EXPECT_GT(std::unique(different.begin(), different.end()) - different.begin(), 2);
}

TEST_F(ConstrainedTest, AResumedTextGoesOn) {
  const GenerateRequest request = constrained(3, "([A-Z][a-n]{1,4}[0-9])+", 30);
  const std::vector<TokenId> whole = alone(request);
  ASSERT_GT(whole.size(), 4U);
  for (std::size_t cut = 0; cut < whole.size(); cut += 3) {
    TestBed bed(options());
    GenerateRequest rest = request;
    rest.resumed = {{0, {whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(cut)}}};
    const RequestId id = bed.add(rest);
    bed.run();
    std::vector<TokenId> joined(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(cut));
    const auto& tokens = bed.outcome(id).tokens();
    joined.insert(joined.end(), tokens.begin(), tokens.end());
    EXPECT_EQ(joined, whole) << "cut at " << cut;
  }
}

TEST_F(ConstrainedTest, WhatTheGrammarDoesNotAllowCannotBeResumed) {
  TestBed bed(options());
  GenerateRequest request = constrained(3, "[A-Z]+");
  request.resumed = {{0, {0}}};  // "0"
  const RequestId id = bed.add(request);
  bed.run();
  ASSERT_TRUE(bed.outcome(id).error);
  EXPECT_EQ(bed.outcome(id).error->code, Errc::kInvalidArgument);
}

TEST_F(ConstrainedTest, PreemptionKeepsThePlace) {
  TestBed bed(options(20));
  std::vector<RequestId> ids;
  for (std::uint64_t name = 0; name < 8; ++name)
    ids.push_back(bed.add(constrained(name, "([a-n]{3}[0-9])*", 60)));
  bed.run();
  EXPECT_GT(bed.stats().preemptions, 0U);
  for (const RequestId id : ids)
    EXPECT_EQ(bed.outcome(id).tokens(), alone(bed.request(id)));
}

TEST_F(ConstrainedTest, ProcessorsWorkOnWhatTheMaskLeaves) {
  TestBed bed(options());
  std::vector<RequestId> ids;
  for (std::uint64_t name = 0; name < 6; ++name) {
    GenerateRequest request = constrained(name, "[a-n]{4,30}");
    request.sampling.top_p = name % 2 == 0 ? 0.5F : 1.0F;
    request.sampling.top_k = name % 3 == 0 ? 3 : 0;
    request.sampling.repetition_penalty = 1.3F;
    request.sampling.top_logprobs = 2;
    request.sampling.min_tokens = 6;
    request.sampling.ignore_eos = false;
    ids.push_back(bed.add(request));
  }
  bed.run();
  for (const RequestId id : ids) {
    const auto& tokens = bed.outcome(id).tokens();
    EXPECT_EQ(tokens, alone(bed.request(id)));
    EXPECT_TRUE(std::regex_match(text_of(tokens), std::regex("[a-n]{6,30}"))) << text_of(tokens);
  }
}

TEST_F(ConstrainedTest, StopTokensOfTheRequestEndTheGrammar) {
  TestBed bed(options());
  GenerateRequest request = constrained(4, "[a-n]{2,4}");
  request.sampling.stop_token_ids = {17};  // "A"
  request.sampling.logit_bias = {{17, 90.0F}};
  const RequestId id = bed.add(request);
  bed.run();
  EXPECT_EQ(bed.outcome(id).tokens().size(), 4U);  // ignore_eos: as long as may be
  EXPECT_EQ(bed.outcome(id).choices.at(0).stop_token, 17);
}

TEST_F(ConstrainedTest, ADocumentThatDoesNotCompileIsRefusedAlone) {
  TestBed bed(options());
  const RequestId free = bed.add(make_request(some_tokens(9, 1), 20, 1));
  GenerateRequest bad = constrained(3, "x");
  bad.grammar = R"({"type":"structural_tag","format":{"type":"regex","pattern":"(x"}})";
  const RequestId refused = bed.add(bad);
  const RequestId good = bed.add(constrained(5, "[a-n]{2}"));
  bed.run();
  ASSERT_TRUE(bed.outcome(refused).error);
  EXPECT_EQ(bed.outcome(refused).error->code, Errc::kInvalidArgument);
  EXPECT_FALSE(bed.outcome(refused).usage);
  EXPECT_EQ(bed.outcome(good).tokens().size(), 2U);
  expect_free(bed, free);
}

TEST_F(ConstrainedTest, WithoutTextsGrammarsAreUnsupported) {
  TestBed bed;
  const auto added = bed.try_add(constrained(3, "x"));
  ASSERT_FALSE(added);
  EXPECT_EQ(added.error().code, Errc::kUnsupported);
}

TEST_F(ConstrainedTest, CancelledWhileItIsCompiled) {
  TestBed bed(options());
  GenerateRequest request = constrained(3, "[a-n]{2,40}");
  request.num_choices = 3;
  const RequestId id = bed.add(request);
  bed.scheduler().cancel(id);
  bed.run();
  ASSERT_TRUE(bed.outcome(id).usage);
  EXPECT_EQ(bed.outcome(id).usage->generated_tokens, 0U);
  for (const auto& [index, choice] : bed.outcome(id).choices)
    EXPECT_EQ(choice.finished, FinishReason::kCancelled);
}

TEST_F(ConstrainedTest, AResumedChoiceThatIsUnwantedWhileItIsCompiledEndsBehindThat) {
  GenerateRequest request = constrained(3, "([A-Z][a-n]{1,4}[0-9])+", 30);
  const std::vector<TokenId> first = alone(request, 0);
  const std::vector<TokenId> second = alone(request, 1);
  ASSERT_GT(std::min(first.size(), second.size()), 4U);
  const auto begin_of = [](const std::vector<TokenId>& tokens) {
    return std::vector<TokenId>(tokens.begin(), tokens.begin() + 2);
  };
  TestBed bed(options());
  request.num_choices = 2;
  request.resumed = {{0, begin_of(first)}, {1, begin_of(second)}};
  const RequestId id = bed.add(request);
  bed.scheduler().end_choice(id, 1);
  bed.run();
  ASSERT_TRUE(bed.outcome(id).usage);
  EXPECT_EQ(bed.outcome(id).choices.at(1).finished, FinishReason::kCancelled);
  EXPECT_TRUE(bed.outcome(id).choices.at(1).tokens.empty());
  std::vector<TokenId> joined = begin_of(first);
  const auto& rest = bed.outcome(id).tokens();
  joined.insert(joined.end(), rest.begin(), rest.end());
  EXPECT_EQ(joined, first);
}

TEST_F(ConstrainedTest, ItsDeadlinePassesWhileItIsCompiled) {
  TestBed bed(options());
  GenerateRequest request = constrained(3, "[a-n]{2,40}");
  request.deadline = std::chrono::milliseconds(5);
  const RequestId id = bed.add(request);
  bed.clock().advance(std::chrono::milliseconds(10));
  bed.run();
  ASSERT_TRUE(bed.outcome(id).error);
  EXPECT_EQ(bed.outcome(id).error->code, Errc::kDeadlineExceeded);
}

TEST_F(ConstrainedTest, ScoredPromptsBesideThem) {
  // More logits in a step than may wait for masks.
  TestBed::Options ahead = options();
  ahead.look_ahead = true;
  TestBed bed(ahead);
  const RequestId id = bed.add(constrained(3, "[a-n]{30}"));
  GenerateRequest scored = constrained(4, "[a-n]{30}");
  scored.prompt = some_tokens(150, 4);
  scored.prompt_logprobs = 1;
  const RequestId both = bed.add(scored);
  for (int i = 0; i < 200 && bed.outcomes().size() < 2; ++i)
    ASSERT_TRUE(bed.scheduler().step());
  GenerateRequest free = make_request(some_tokens(150, 5), 20, 1);
  free.prompt_logprobs = 1;
  const RequestId beside = bed.add(free);
  bed.run();
  EXPECT_EQ(bed.outcome(id).tokens(), alone(bed.request(id)));
  EXPECT_EQ(bed.outcome(both).tokens(), alone(scored));
  EXPECT_EQ(bed.outcome(both).prompt.size(), 149U);
  EXPECT_EQ(bed.outcome(beside).prompt.size(), 149U);
  expect_free(bed, beside);
}

TEST_F(ConstrainedTest, CancelledInTheMiddle) {
  for (int steps = 1; steps < 12; ++steps) {
    TestBed bed(options());
    const RequestId gone = bed.add(constrained(3, "[a-n]{30}"));
    const RequestId stays = bed.add(constrained(4, "[a-n]{30}"));
    const RequestId free = bed.add(make_request(some_tokens(9, 1), 20, 1));
    for (int i = 0; i < 200 && bed.outcomes().size() < 3; ++i)
      ASSERT_TRUE(bed.scheduler().step());
    bed.step(steps);
    bed.scheduler().cancel(gone);
    bed.run();
    EXPECT_EQ(bed.outcome(stays).tokens(), alone(bed.request(stays)));
    expect_free(bed, free);
  }
}

}  // namespace
}  // namespace thaw::scheduler
