#include "forkpool/journal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace thaw::forkpool {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr Clock::TimePoint kStart{};

GenerateRequest request(std::uint32_t num_choices = 1, std::uint32_t max_tokens = 4) {
  GenerateRequest request;
  request.id = 7;
  request.prompt = {1, 2, 3};
  request.num_choices = num_choices;
  request.sampling.max_tokens = max_tokens;
  return request;
}

GenerateEvent token(std::uint32_t choice, std::uint32_t index) {
  return TokenEvent{7, choice, index, static_cast<TokenId>(100 * choice + index), 0, {}};
}

bool forwarded(Ongoing& entry, GenerateEvent event) {
  return entry.accept(event).value();
}

std::string violation(Ongoing& entry, GenerateEvent event) {
  const auto result = entry.accept(event);
  return result ? "" : result.error().message;
}

TEST(Ongoing, ForwardsEverythingOnce) {
  Ongoing entry(request(2), kStart);
  EXPECT_TRUE(forwarded(entry, AdmittedEvent{7, 0}));
  EXPECT_FALSE(forwarded(entry, AdmittedEvent{7, 1}));
  EXPECT_TRUE(forwarded(entry, token(0, 0)));
  EXPECT_FALSE(forwarded(entry, token(0, 0)));
  EXPECT_TRUE(forwarded(entry, token(1, 0)));
  EXPECT_TRUE(forwarded(entry, token(0, 1)));
  EXPECT_TRUE(forwarded(entry, FinishedEvent{7, 0, FinishReason::kStop, 9}));
  EXPECT_FALSE(forwarded(entry, token(0, 1)));
  EXPECT_TRUE(forwarded(entry, FinishedEvent{7, 1, FinishReason::kLength, {}}));
  GenerateEvent completed = CompletedEvent{7, {3, 2, 1}};
  EXPECT_TRUE(entry.accept(completed).value());
  const Usage usage = std::get<CompletedEvent>(completed).usage;
  EXPECT_EQ(usage.prompt_tokens, 3U);
  EXPECT_EQ(usage.cached_tokens, 2U);
  EXPECT_EQ(usage.generated_tokens, 4U);  // three tokens and a stop token
}

TEST(Ongoing, PromptLogprobsGoOnAfterADeath) {
  const auto scored = [](std::uint32_t first, std::size_t count) {
    return PromptLogprobsEvent{7, first, std::vector<PromptLogprob>(count)};
  };
  GenerateRequest asked = request(1, 0);
  asked.prompt = {1, 2, 3, 4, 5};
  asked.prompt_logprobs = 1;
  Ongoing entry(asked, kStart);
  EXPECT_THAT(violation(entry, scored(2, 1)), HasSubstr("tokens 2 to 3, after those of 0"));
  EXPECT_TRUE(forwarded(entry, scored(1, 2)));
  EXPECT_THAT(violation(entry, scored(3, 3)), HasSubstr("tokens 3 to 6"));
  // Nothing is generated, so that nothing but the end can be missing.
  EXPECT_TRUE(entry.settle_ended().empty());
  const GenerateRequest again = entry.to_send(kStart);
  EXPECT_EQ(again.prompt_scored, 2U);
  EXPECT_TRUE(again.resumed.empty());
  EXPECT_TRUE(forwarded(entry, scored(3, 2)));
  EXPECT_TRUE(forwarded(entry, FinishedEvent{7, 0, FinishReason::kLength, {}}));
  EXPECT_TRUE(forwarded(entry, CompletedEvent{7, {5, 0, 0}}));
  Ongoing plain(request(), kStart);
  EXPECT_THAT(violation(plain, scored(1, 1)), HasSubstr("log-probabilities of prompt tokens"));
}

TEST(Ongoing, NamesBrokenPromises) {
  Ongoing entry(request(2), kStart);
  EXPECT_THAT(violation(entry, token(0, 1)), HasSubstr("got token 1, not 0"));
  EXPECT_THAT(violation(entry, token(2, 0)), HasSubstr("choice 2, which was not asked for"));
  EXPECT_THAT(violation(entry, CompletedEvent{7, {}}), HasSubstr("2 choices unfinished"));
  EXPECT_TRUE(forwarded(entry, FinishedEvent{7, 0, FinishReason::kStop, {}}));
  EXPECT_THAT(violation(entry, token(0, 0)), HasSubstr("after its end"));
  EXPECT_THAT(violation(entry, FinishedEvent{7, 0, FinishReason::kStop, {}}),
              HasSubstr("ended twice"));
  EXPECT_THAT(violation(entry, FinishedEvent{7, 5, FinishReason::kStop, {}}),
              HasSubstr("not asked for"));
}

TEST(Ongoing, NothingSentIsAPlainRetry) {
  Ongoing entry(request(2), kStart);
  forwarded(entry, AdmittedEvent{7, 0});
  EXPECT_FALSE(entry.has_progress());
  EXPECT_TRUE(entry.settle_ended().empty());
  EXPECT_TRUE(entry.to_send(kStart).resumed.empty());
}

TEST(Ongoing, ResumesEachUnfinishedChoiceAfterItsTokens) {
  Ongoing entry(request(3), kStart);
  forwarded(entry, token(0, 0));
  forwarded(entry, token(2, 0));
  forwarded(entry, token(2, 1));
  forwarded(entry, FinishedEvent{7, 0, FinishReason::kStop, 9});
  EXPECT_TRUE(entry.has_progress());
  EXPECT_TRUE(entry.settle_ended().empty());
  const auto resumed = entry.to_send(kStart).resumed;
  ASSERT_EQ(resumed.size(), 2U);
  EXPECT_EQ(resumed[0].choice_index, 1U);
  EXPECT_TRUE(resumed[0].generated.empty());
  EXPECT_EQ(resumed[1].choice_index, 2U);
  EXPECT_THAT(resumed[1].generated, ElementsAre(200, 201));
  // It goes on from there, in whatever process; usage counts both parts.
  EXPECT_TRUE(forwarded(entry, token(2, 2)));
  EXPECT_TRUE(forwarded(entry, FinishedEvent{7, 2, FinishReason::kStop, {}}));
  EXPECT_TRUE(forwarded(entry, FinishedEvent{7, 1, FinishReason::kStop, {}}));
  GenerateEvent completed = CompletedEvent{7, {3, 0, 1}};
  ASSERT_TRUE(entry.accept(completed).value());
  EXPECT_EQ(std::get<CompletedEvent>(completed).usage.generated_tokens, 5U);
}

TEST(Ongoing, SaysWhatTheDeadHadNoTimeToSay) {
  Ongoing entry(request(2, 2), kStart);
  forwarded(entry, token(0, 0));
  forwarded(entry, token(0, 1));
  auto events = entry.settle_ended();
  ASSERT_EQ(events.size(), 1U);
  EXPECT_EQ(std::get<FinishedEvent>(events[0]).reason, FinishReason::kLength);
  EXPECT_EQ(entry.num_unfinished(), 1U);
  forwarded(entry, FinishedEvent{7, 1, FinishReason::kStop, 9});
  events = entry.settle_ended();
  ASSERT_EQ(events.size(), 1U);
  EXPECT_EQ(std::get<CompletedEvent>(events[0]).usage.generated_tokens, 3U);
}

TEST(Ongoing, WhatTheCallerWantsNoMoreOfIsNotResumed) {
  Ongoing entry(request(3), kStart);
  EXPECT_FALSE(entry.end_choice(0)) << "it has no token yet";
  EXPECT_FALSE(entry.end_choice(3)) << "there is none";
  for (const std::uint32_t choice : {0U, 1U, 2U})
    forwarded(entry, token(choice, 0));
  forwarded(entry, FinishedEvent{7, 2, FinishReason::kStop, 9});
  EXPECT_TRUE(entry.end_choice(0));
  EXPECT_TRUE(entry.end_choice(0));
  EXPECT_FALSE(entry.end_choice(2)) << "it has ended";
  EXPECT_TRUE(forwarded(entry, token(0, 1))) << "on its way";
  const auto events = entry.settle_ended();
  ASSERT_EQ(events.size(), 1U);
  EXPECT_EQ(std::get<FinishedEvent>(events[0]).choice, 0U);
  EXPECT_EQ(std::get<FinishedEvent>(events[0]).reason, FinishReason::kCancelled);
  const auto resumed = entry.to_send(kStart).resumed;
  ASSERT_EQ(resumed.size(), 1U);
  EXPECT_EQ(resumed[0].choice_index, 1U);
}

TEST(Ongoing, ACallersOwnResumeIsKept) {
  GenerateRequest given = request(3, 8);
  given.resumed = {{1, {5, 6}}};
  Ongoing entry(given, kStart);
  EXPECT_FALSE(entry.has_progress());
  auto resumed = entry.to_send(kStart).resumed;
  ASSERT_EQ(resumed.size(), 1U);
  EXPECT_THAT(resumed[0].generated, ElementsAre(5, 6));
  EXPECT_THAT(violation(entry, token(0, 0)), HasSubstr("not asked for"));
  EXPECT_TRUE(forwarded(entry, token(1, 2)));
  EXPECT_THAT(entry.to_send(kStart).resumed[0].generated, ElementsAre(5, 6, 102));
  EXPECT_EQ(entry.num_unfinished(), 1U);
  EXPECT_EQ(entry.max_tokens_left(), 5U);
  const auto events = entry.settle_cancelled();
  ASSERT_EQ(events.size(), 2U);
  EXPECT_EQ(std::get<FinishedEvent>(events[0]).choice, 1U);
  EXPECT_EQ(std::get<CompletedEvent>(events[1]).usage.generated_tokens, 1U);
}

TEST(Ongoing, SendsTheTimeThatIsLeft) {
  GenerateRequest hurried = request();
  hurried.deadline = milliseconds(1000);
  const Ongoing entry(hurried, kStart);
  EXPECT_EQ(entry.to_send(kStart + milliseconds(300)).deadline, milliseconds(700));
  EXPECT_EQ(entry.to_send(kStart + milliseconds(3000)).deadline, milliseconds(1));
  EXPECT_FALSE(Ongoing(request(), kStart).to_send(kStart).deadline);
}

}  // namespace
}  // namespace thaw::forkpool
