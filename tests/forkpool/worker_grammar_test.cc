// Grammars in a worker process: the vocabulary comes over the channel.

#include <regex>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "engine/base/memory_map.h"
#include "engine/model/model.h"
#include "kvsnap/arena.h"
#include "tests/forkpool/tiny_image.h"
#include "tests/forkpool/worker_harness.h"
#include "tests/scheduler/ascii_texts.h"

namespace thaw::forkpool::test {
namespace {

class WorkerGrammarTest : public testing::Test {
 protected:
  WorkerGrammarTest()
      : kv_(create_memfd("test-kv",
                         64 * model::kv_block_bytes(tiny_image().config, ops::KvDType::kBF16))
                .value()),
        texts_(scheduler::ascii_texts(tiny_image().config.vocab_size, ' ',
                                      tiny_image().config.eos_token_ids)) {}

  /// A new process on the same memory.
  std::unique_ptr<DrivenWorker> start(bool with_texts = true) {
    auto worker = std::make_unique<DrivenWorker>(
        DrivenWorker::Memory{tiny_image().fd.get(), kv_.get(), arena_.fd()});
    InitFrame init;
    init.max_num_seqs = 8;
    init.max_waiting = 64;
    init.prefill_chunk_tokens = 32;
    init.log_level = "off";
    worker->send(init);
    if (with_texts) worker->send(VocabularyFrame{texts_});
    worker->send(AdoptFrame{});
    return worker;
  }

  GenerateRequest request(const std::string& pattern) {
    GenerateRequest request;
    request.id = ++last_id_;
    for (TokenId token = 3; token < 60; ++token)
      request.prompt.push_back(token * 7 % 500);
    request.sampling.seed = 5;
    request.sampling.max_tokens = 40;
    request.grammar = scheduler::regex_grammar(pattern);
    return request;
  }

  std::string text_of(const std::vector<TokenId>& tokens) const {
    std::string text;
    for (const TokenId token : tokens)
      text += texts_->text(static_cast<std::size_t>(token));
    return text;
  }

  UniqueFd kv_;
  kvsnap::Arena arena_ = std::move(kvsnap::Arena::create(std::size_t{1} << 20)).value();
  std::shared_ptr<const TokenTexts> texts_;
  RequestId last_id_ = 0;
};

TEST_F(WorkerGrammarTest, AnAnswerIsOfItsGrammarAndEndsWithIt) {
  const auto worker = start();
  const Outcome outcome = worker->run(request("[a-m]{2,5}-[0-9]{3}"));
  ASSERT_TRUE(outcome.usage) << outcome.error.value_or(Error()).message;
  EXPECT_EQ(outcome.reason, FinishReason::kStop);
  EXPECT_TRUE(std::regex_match(text_of(outcome.tokens), std::regex("[a-m]{2,5}-[0-9]{3}")))
      << text_of(outcome.tokens);
  EXPECT_EQ(worker->stats().grammars_compiled, 1U);
  EXPECT_GT(worker->stats().grammar_masks, 5U);
}

TEST_F(WorkerGrammarTest, AfterADeathItGoesOnInTheGrammar) {
  GenerateRequest whole = request("([a-m]{1,4}[0-9]{1,2},)*");
  whole.sampling.ignore_eos = true;
  const std::vector<TokenId> expected = start()->run(whole).tokens;
  ASSERT_EQ(expected.size(), 40U);
  for (const std::ptrdiff_t cut : {1, 7, 23, 39}) {
    GenerateRequest rest = whole;
    rest.id = ++last_id_;
    rest.resumed = {{0, {expected.begin(), expected.begin() + cut}}};
    EXPECT_EQ(start()->run(rest).tokens,
              std::vector<TokenId>(expected.begin() + cut, expected.end()));
  }
}

TEST_F(WorkerGrammarTest, WhatDoesNotCompileIsFailedAndTheWorkerServesOn) {
  const auto worker = start();
  const Outcome refused = worker->run(request("(a"));
  ASSERT_TRUE(refused.error);
  EXPECT_EQ(refused.error->code, Errc::kInvalidArgument);
  EXPECT_NE(refused.error->message.find("grammar"), std::string::npos) << refused.error->message;
  EXPECT_TRUE(worker->run(request("a")).usage);
}

TEST_F(WorkerGrammarTest, WithoutTextsGrammarsAreUnsupported) {
  const Outcome refused = start(false)->run(request("a"));
  ASSERT_TRUE(refused.error);
  EXPECT_EQ(refused.error->code, Errc::kUnsupported);
}

}  // namespace
}  // namespace thaw::forkpool::test
