#include "engine/scheduler/scheduler.h"

#include <map>
#include <set>

#include <gtest/gtest.h>

#include "tests/scheduler/test_bed.h"

namespace thaw::scheduler {
namespace {

using std::chrono::milliseconds;

TEST(Scheduler, GeneratesWhatTheModelGives) {
  TestBed bed;
  for (std::size_t length : {1U, 2U, 15U, 16U, 17U, 127U, 128U, 129U, 300U})
    bed.add(make_request(some_tokens(length, length), 40, length % 2 == 0 ? length : 5));
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.stats().tokens_decoded, 9U * 40U);
  EXPECT_EQ(bed.stats().preemptions, 0U);
}

TEST(Scheduler, ChunksDoNotMatter) {
  for (std::uint32_t chunk : {1U, 7U, 16U, 100U, 5000U}) {
    TestBed::Options options;
    options.scheduler.prefill_chunk_tokens = chunk;
    TestBed bed(options);
    bed.add(make_request(some_tokens(200, 1), 20));
    bed.add(make_request(some_tokens(100, 2), 20, 3));
    bed.run_and_expect_exact();
    EXPECT_LE(bed.model().largest_prefill(), static_cast<int>(chunk));
  }
}

TEST(Scheduler, FinishReasons) {
  TestBed bed;
  GenerateRequest request = make_request(some_tokens(10, 1), 200, 1);
  request.sampling.ignore_eos = false;
  const RequestId eos = bed.add(request);
  request.sampling.ignore_eos = true;
  const RequestId length = bed.add(request);
  request.sampling.stop_token_ids = {3, 9, 11};
  const RequestId stop = bed.add(request);
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.outcome(eos).choices.at(0).finished, FinishReason::kStop);
  EXPECT_EQ(bed.outcome(eos).choices.at(0).stop_token, kFakeEos);
  EXPECT_EQ(bed.outcome(length).choices.at(0).finished, FinishReason::kLength);
  EXPECT_EQ(bed.outcome(length).tokens().size(), 200U);
  const auto stop_token = bed.outcome(stop).choices.at(0).stop_token;
  ASSERT_TRUE(stop_token);
  EXPECT_TRUE(*stop_token == 3 || *stop_token == 9 || *stop_token == 11);
  // The stop token is paid for but not sent.
  EXPECT_EQ(bed.outcome(stop).usage->generated_tokens, bed.outcome(stop).tokens().size() + 1);
}

TEST(Scheduler, MinTokensHoldsStopsBack) {
  TestBed bed;
  GenerateRequest request = make_request(some_tokens(10, 1), 100, 2);
  request.sampling.stop_token_ids = some_tokens(40, 8);
  const RequestId without = bed.add(request);
  request.sampling.min_tokens = 30;
  const RequestId with = bed.add(request);
  bed.run_and_expect_exact();
  EXPECT_LT(bed.outcome(without).tokens().size(), 30U);
  EXPECT_GE(bed.outcome(with).tokens().size(), 30U);
}

TEST(Scheduler, EndsAtTheContext) {
  TestBed::Options options;
  options.max_positions = 200;
  options.scheduler.max_model_len = 100;
  TestBed bed(options);
  const RequestId id = bed.add(make_request(some_tokens(90, 1), 1000));
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.outcome(id).tokens().size(), 10U);
  EXPECT_EQ(bed.outcome(id).choices.at(0).finished, FinishReason::kLength);
  const auto refused = bed.try_add(make_request(some_tokens(100, 1), 1));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::kInvalidArgument);
  EXPECT_NE(refused.error().message.find("prompt has 100 tokens"), std::string::npos);
  EXPECT_NE(refused.error().message.find("at most 100 fit the context"), std::string::npos);
}

TEST(Scheduler, ALoneSequenceThatFillsThePoolEndsWithLength) {
  TestBed::Options options;
  options.num_blocks = 4;
  TestBed bed(options);
  const RequestId id = bed.add(make_request(some_tokens(30, 1), 1000));
  bed.run_and_expect_exact();
  EXPECT_EQ(bed.outcome(id).tokens().size(), 34U);
  EXPECT_EQ(bed.outcome(id).choices.at(0).finished, FinishReason::kLength);
  const auto refused = bed.try_add(make_request(some_tokens(64, 1), 1));
  ASSERT_FALSE(refused);
  EXPECT_NE(refused.error().message.find("KV pool of 4 blocks"), std::string::npos);
  // The same prompt again, with its last block cached in part and no room to copy it.
  bed.add(make_request(some_tokens(63, 1), 1));
  bed.run_and_expect_exact();
  bed.add(make_request(some_tokens(63, 1), 1));
  bed.run_and_expect_exact();
}

TEST(Scheduler, RefusesBadRequests) {
  TestBed bed;
  const auto expect_error = [&](GenerateRequest request, Errc code, const std::string& text) {
    const auto added = bed.try_add(std::move(request));
    ASSERT_FALSE(added) << text;
    EXPECT_EQ(added.error().code, code);
    EXPECT_NE(added.error().message.find(text), std::string::npos) << added.error().message;
  };
  const auto good = make_request(some_tokens(5, 1));
  auto bad = good;
  bad.prompt.clear();
  expect_error(bad, Errc::kInvalidArgument, "prompt is empty");
  bad = good;
  bad.prompt[3] = kFakeVocab;
  expect_error(bad, Errc::kInvalidArgument, "token id 64 is outside the vocabulary of 64");
  bad = good;
  bad.prompt[3] = -1;
  expect_error(bad, Errc::kInvalidArgument, "token id -1");
  bad = good;
  bad.num_choices = 0;
  expect_error(bad, Errc::kInvalidArgument, "num_choices");
  bad = good;
  bad.sampling.temperature = -1.0F;
  expect_error(bad, Errc::kInvalidArgument, "temperature");
  bad = good;
  bad.grammar = "root ::= x";
  expect_error(bad, Errc::kUnsupported, "grammar");
  bad = good;
  bad.adapter = "lora";
  expect_error(bad, Errc::kUnsupported, "lora");
  bad = good;
  bad.resumed = {{0, {1}}, {0, {2}}};
  expect_error(bad, Errc::kInvalidArgument, "resumed twice");
  bad = good;
  bad.resumed = {{0, {99}}};
  expect_error(bad, Errc::kInvalidArgument, "token id 99");
  EXPECT_TRUE(bed.outcomes().empty());
  EXPECT_FALSE(bed.scheduler().has_work());
}

TEST(Scheduler, RefusesAnIdTwiceAndAFullQueue) {
  TestBed::Options options;
  options.scheduler.max_waiting = 2;
  TestBed bed(options);
  const RequestId id = bed.add(make_request(some_tokens(5, 1)));
  auto again = make_request(some_tokens(5, 1));
  again.id = id;
  EXPECT_FALSE(bed.scheduler().add(again));
  bed.add(make_request(some_tokens(5, 2)));
  const auto refused = bed.try_add(make_request(some_tokens(5, 3)));
  ASSERT_FALSE(refused);
  EXPECT_EQ(refused.error().code, Errc::kResourceExhausted);
  bed.step();
  bed.add(make_request(some_tokens(5, 3)));
  bed.run_and_expect_exact();
}

TEST(Scheduler, RefusesWrongOptions) {
  const auto construct = [](const SchedulerOptions& scheduler) {
    TestBed::Options options;
    options.scheduler = scheduler;
    TestBed bed(options);
  };
  SchedulerOptions options;
  options.num_blocks = 7;
  EXPECT_THROW(construct(options), Exception);
  options = {};
  options.max_model_len = 100000;
  EXPECT_THROW(construct(options), Exception);
  options = {};
  options.prefill_chunk_tokens = 0;
  EXPECT_THROW(construct(options), Exception);
}

TEST(Scheduler, CancelFreesBlocksInEveryState) {
  TestBed::Options options;
  options.scheduler.max_num_seqs = 2;
  TestBed bed(options);
  const auto trunk = some_tokens(300, 1);
  const RequestId prefilling = bed.add(make_request(trunk, 10));
  const RequestId waiting_for_trunk = bed.add(make_request(trunk + some_tokens(9, 2), 10));
  const RequestId decoding = bed.add(make_request(some_tokens(5, 3), 10));
  const RequestId queued = bed.add(make_request(some_tokens(5, 4), 10));
  bed.step(2);
  EXPECT_EQ(bed.outcome(decoding).tokens().size(), 2U);
  EXPECT_EQ(bed.stats().waiting, 2U);
  for (RequestId id : {waiting_for_trunk, queued, decoding, prefilling}) {
    bed.scheduler().cancel(id);
    EXPECT_EQ(bed.outcome(id).choices.at(0).finished, FinishReason::kCancelled);
    EXPECT_TRUE(bed.outcome(id).usage);
  }
  bed.scheduler().cancel(prefilling);  // it has ended already
  if (looks_ahead()) bed.step();  // what is in flight
  EXPECT_FALSE(bed.scheduler().has_work());
  const auto checked = bed.scheduler().check_integrity();
  EXPECT_TRUE(checked) << checked.error().message;
  EXPECT_EQ(bed.stats().running, 0U);
  EXPECT_EQ(bed.stats().blocks_free, bed.stats().blocks_total);
  // What was computed stays and serves the next one.
  const RequestId next = bed.add(make_request(trunk, 2));
  bed.run_and_expect_exact();
  EXPECT_GT(bed.outcome(next).usage->cached_tokens, 100U);
}

TEST(Scheduler, OneChoiceEndsAndTheOthersGoOn) {
  TestBed bed;
  auto request = make_request(some_tokens(40, 1), 30);
  request.num_choices = 3;
  request.sampling.temperature = 1;
  request.sampling.ignore_eos = true;
  const RequestId id = bed.add(request);
  const RequestId other = bed.add(make_request(some_tokens(7, 2), 20));
  bed.scheduler().end_choice(id, 1);  // it has no token: nothing happens
  const auto tokens_of_it = [&] {
    const auto& choices = bed.outcome(id).choices;
    return choices.size() < 2 ? 0 : choices.at(1).tokens.size();
  };
  while (tokens_of_it() < 2 && bed.scheduler().has_work())
    bed.step();
  bed.scheduler().end_choice(id, 1);
  const std::size_t given = bed.outcome(id).choices.at(1).tokens.size();
  EXPECT_GT(given, 0U);
  EXPECT_EQ(bed.outcome(id).choices.at(1).finished, FinishReason::kCancelled);
  bed.scheduler().end_choice(id, 1);
  bed.scheduler().end_choice(id, 7);
  bed.scheduler().end_choice(99, 0);
  while (!bed.outcome(id).ended() || !bed.outcome(other).ended())
    bed.step();
  EXPECT_EQ(bed.outcome(id).choices.at(1).tokens.size(), given);
  for (const std::uint32_t choice : {0U, 2U})
    EXPECT_EQ(bed.outcome(id).choices.at(choice).tokens.size(), 30U);
  if (looks_ahead()) bed.step();  // what is in flight
  const auto checked = bed.scheduler().check_integrity();
  EXPECT_TRUE(checked) << checked.error().message;
  EXPECT_EQ(bed.stats().blocks_free, bed.stats().blocks_total);
}

TEST(Scheduler, DeadlinesEndARequestWithAnError) {
  TestBed bed;
  auto request = make_request(some_tokens(300, 1), 1000);
  request.deadline = milliseconds(50);
  const RequestId running = bed.add(request);
  request.deadline = milliseconds(500);
  const RequestId later = bed.add(request);
  bed.step(6);
  bed.clock().advance(milliseconds(49));
  bed.step();
  EXPECT_FALSE(bed.outcome(running).ended());
  bed.clock().advance(milliseconds(1));
  bed.step();
  ASSERT_TRUE(bed.outcome(running).error);
  EXPECT_EQ(bed.outcome(running).error->code, Errc::kDeadlineExceeded);
  EXPECT_FALSE(bed.outcome(later).ended());
  bed.scheduler().cancel(later);
  if (looks_ahead()) bed.step();  // what is in flight
  EXPECT_FALSE(bed.scheduler().has_work());
}

TEST(Scheduler, NanFailsTheRequestAndNotTheEngine) {
  TestBed bed;
  bed.model().make_logits_nan();
  auto request = make_request(some_tokens(20, 1));
  request.num_choices = 3;
  const RequestId id = bed.add(request);
  bed.run();
  ASSERT_TRUE(bed.outcome(id).error);
  EXPECT_NE(bed.outcome(id).error->message.find("NaN"), std::string::npos);
}

TEST(Scheduler, ChoicesForkFromOneRow) {
  for (std::size_t length : {32U, 33U, 47U}) {
    TestBed bed;
    auto request = make_request(some_tokens(length, 1), 30, 9);
    request.num_choices = 5;
    const RequestId id = bed.add(request);
    bed.run_and_expect_exact();
    EXPECT_EQ(bed.stats().tokens_prefilled, length);
    EXPECT_EQ(bed.stats().tokens_reprefilled, 0U);
    EXPECT_EQ(bed.outcome(id).usage->cached_tokens, 0U);
    EXPECT_EQ(bed.outcome(id).usage->generated_tokens, 5U * 30U);
    EXPECT_EQ(bed.stats().copied_blocks, length % kBlockSize == 0 ? 0U : 4U);
    std::set<std::vector<TokenId>> different;
    for (std::uint32_t choice = 0; choice < 5; ++choice)
      different.insert(bed.outcome(id).tokens(choice));
    EXPECT_EQ(different.size(), 5U);
  }
}

TEST(Scheduler, MoreChoicesThanSlots) {
  TestBed::Options options;
  options.scheduler.max_num_seqs = 2;
  TestBed bed(options);
  auto request = make_request(some_tokens(40, 1), 10, 9);
  request.num_choices = 7;
  bed.add(request);
  request.num_choices = 1;
  bed.add(request);
  bed.run_and_expect_exact();
}

TEST(Scheduler, ANextTurnFindsPromptAndAnswer) {
  TestBed bed;
  const RequestId first = bed.add(make_request(some_tokens(50, 1), 20));
  bed.run();
  const auto conversation = some_tokens(50, 1) + bed.outcome(first).tokens();
  const RequestId second = bed.add(make_request(conversation + some_tokens(5, 2), 5));
  bed.run_and_expect_exact();
  // All but the answer's last token, whose KV was never needed, and the new ones.
  EXPECT_EQ(bed.outcome(second).usage->cached_tokens, 69U);
  EXPECT_EQ(bed.stats().tokens_cached, 69U);
}

TEST(Scheduler, TheLastPromptTokenIsAlwaysComputed) {
  for (std::size_t length : {1U, 16U, 17U, 40U}) {
    TestBed bed;
    bed.add(make_request(some_tokens(length, 1), 40));
    bed.run();
    const RequestId again = bed.add(make_request(some_tokens(length, 1), 40));
    bed.run_and_expect_exact();
    EXPECT_EQ(bed.outcome(again).usage->cached_tokens, length - 1);
  }
}

TEST(Scheduler, LogitsHookSeesEveryRow) {
  TestBed::Options options;
  std::map<std::uint32_t, std::vector<std::uint32_t>> seen;
  options.scheduler.on_logits = [&](RequestId, std::uint32_t choice, std::uint32_t index,
                                    std::span<const float> logits) {
    EXPECT_EQ(logits.size(), static_cast<std::size_t>(kFakeVocab));
    seen[choice].push_back(index);
  };
  TestBed bed(options);
  auto request = make_request(some_tokens(20, 1), 3);
  request.num_choices = 2;
  bed.add(request);
  bed.run();
  EXPECT_EQ(seen[0], (std::vector<std::uint32_t>{0, 1, 2}));
  EXPECT_EQ(seen[1], (std::vector<std::uint32_t>{0, 1, 2}));
}

}  // namespace
}  // namespace thaw::scheduler
