// One model on several ranks, each a process: logits and drawn tokens are those of one rank, bit
// for bit, for prefill, decode, batches and chunks.

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cmath>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/cuda/rank_test.h"
#include "tests/model/cuda_harness.h"
#include "tests/model/model_harness.h"

namespace thaw::model {
namespace {

using namespace std::chrono_literals;

class CudaRanksTest : public cuda::RankTest {
 protected:
  static CudaModelOptions options() {
    CudaModelOptions options;
    options.max_positions = 2048;
    options.max_rows = 1300;
    options.max_sequences = 20;
    return options;
  }

  /// This rank's model, connected with the others'.
  void build(const ModelConfig& config, float scale, int ranks, CudaModelOptions wanted,
             std::chrono::milliseconds patience = 60s) {
    start(ranks);
    wanted.tp = {rank(), ranks};
    weights = std::make_unique<CudaTestWeights>(config, 7, scale, device(), wanted.tp);
    exchange = ops::cuda::Exchange::create(
                   device(), {rank(), ranks, cuda_exchange_bytes(config, wanted), patience})
                   .value();
    const std::vector<UniqueFd> all = share(exchange->export_fd().value());
    std::vector<int> descriptors;
    for (const UniqueFd& fd : all)
      descriptors.push_back(fd.get());
    ASSERT_TRUE(exchange->connect(descriptors));
    meet();
    wanted.exchange = exchange.get();
    harness = std::make_unique<CudaHarness>(*weights, wanted, 300);
    tokens = random_tokens(1300, config.vocab_size, 11);
  }

  /// The same steps on all ranks against one rank of its own, which every rank has.
  void compare(const ModelConfig& config, float scale, int ranks) {
    ASSERT_NO_FATAL_FAILURE(build(config, scale, ranks, options()));
    const CudaTestWeights whole(config, 7, scale, device());
    CudaHarness alone(whole, options(), 300);
    meet();
    std::vector<int> wanted = {0, 1, 15, 16, 255, 256};
    const int end = have_devices_each() ? 1300 : 300;
    for (int position = end - 20; position < end; ++position)
      wanted.push_back(position);
    const LogitsAt expected = alone.run(tokens, alone.take_table(end), 0, end, end, wanted);
    for (const float value : expected.at(end - 1))
      ASSERT_TRUE(std::isfinite(value));
    const auto expect_same = [&](const LogitsAt& found, const char* what) {
      EXPECT_FALSE(found.empty()) << what;
      for (const auto& [position, logits] : found)
        EXPECT_TRUE(same_bits(expected.at(position), logits))
            << what << ", position " << position << ", rank " << rank();
    };
    const std::vector<BlockId> trunk = harness->take_table(end);
    expect_same(harness->run(tokens, trunk, 0, end, end, wanted), "one step");
    std::vector<BlockId> table = harness->take_table(end);
    LogitsAt found = harness->run(tokens, table, 0, end - 4, 70, wanted);
    found.merge(harness->run(tokens, table, end - 4, 4, 1, wanted));
    expect_same(found, "chunks of 70, then decode");
    // Decode of the last rows among branches of the same trunk that go on otherwise.
    const int shared = (end - 4) / kBlockSize;
    std::vector<std::vector<BlockId>> branches;
    for (int i = 0; i < 9; ++i) {
      branches.emplace_back(trunk.begin(), trunk.begin() + shared);
      for (const BlockId block : harness->take_blocks(2))
        branches.back().push_back(block);
      harness->run(tokens, branches.back(), shared * kBlockSize, end - 4 - shared * kBlockSize, 16,
                   {});
    }
    found.clear();
    const std::vector<int> only = {0};
    for (int position = end - 4; position < end; ++position) {
      Batch batch;
      for (std::size_t i = 0; i < branches.size(); ++i) {
        const std::size_t token = i == 0 ? static_cast<std::size_t>(position) : 40 * i;
        batch.sequences.push_back(
            {std::span(tokens).subspan(token, 1), position, branches[i], only});
      }
      found[position] = harness->step(batch).front();
    }
    expect_same(found, "in a batch");
  }

  std::unique_ptr<CudaTestWeights> weights;
  std::unique_ptr<ops::cuda::Exchange> exchange;
  std::unique_ptr<CudaHarness> harness;
  std::vector<TokenId> tokens;
};

ModelConfig tiny(int head_dim) {
  ModelConfig config = tiny_cuda_config(head_dim);
  config.qkv_bias = config.o_bias = true;
  config.tied_embeddings = false;
  return config;
}

TEST_F(CudaRanksTest, TwoRanksAreOneBiased) {
  compare(tiny(64), 0.08F, 2);
}

TEST_F(CudaRanksTest, TwoRanksAreOneTiedNormedWindowed) {
  ModelConfig config = tiny_cuda_config(128);
  config.qk_norm = config.rope_factors = true;
  config.layers[1].rope = false;
  config.layers[0].window = 40;
  compare(config, 0.08F, 2);
}

TEST_F(CudaRanksTest, ThreeRanksAreOne) {
  ModelConfig config = tiny_cuda_config(64);
  config.hidden_size = 576;
  config.num_heads = 9;
  config.num_kv_heads = 3;
  compare(config, 0.05F, 3);
}

// Whole weights and a rank's, 24 GB, beside each other.
TEST_F(CudaRanksTest, TwoRanksAreOneLlama8b) {
  ModelConfig config = llama_8b_config();
  if (cuda::device_count() < 2) GTEST_SKIP() << "needs two GPUs: two processes on one take minutes";
  compare(config, 0.02F, 2);
}

// Tokens drawn on the device, two steps in flight: the ranks' tokens and one rank's.
TEST_F(CudaRanksTest, DrawnTokensAreTheSame) {
  const ModelConfig config = tiny(64);
  ASSERT_NO_FATAL_FAILURE(build(config, 0.08F, 2, options()));
  const CudaTestWeights whole(config, 7, 0.08F, device());
  CudaHarness alone(whole, options(), 300);
  meet();
  constexpr int kTokens = 12;
  const auto draw = [&](CudaHarness& on) {
    const std::vector<BlockId> table = on.take_table(40 + kTokens);
    const std::vector<int> last = {39};
    const std::vector<int> only = {0};
    const std::vector<TokenId> unused = {0};
    std::vector<TokenId> drawn;
    std::vector<StepHandle> flying;
    const auto collect = [&] {
      drawn.push_back(on.model().collect(flying.front()).value().drawn[0]);
      flying.erase(flying.begin());
    };
    for (int i = 0; i < kTokens; ++i) {
      SequenceRows rows{std::span(tokens).first(40), 0, table, last};
      if (i > 0) {
        rows = {unused, 40 + i - 1, table, only};
        rows.first_token = DrawnToken{flying.back(), 0};
      }
      rows.draw = DeviceDraw{.temperature = 0.9F, .seed = 5, .position = 40U + i};
      flying.push_back(on.model().launch({{rows}}).value());
      if (flying.size() == 2) collect();
    }
    while (!flying.empty())
      collect();
    return drawn;
  };
  EXPECT_EQ(draw(*harness), draw(alone));
}

TEST_F(CudaRanksTest, ARankThatDiesIsAnErrorOfTheStep) {
  ASSERT_NO_FATAL_FAILURE(build(tiny(64), 0.08F, 2, options(), 500ms));
  if (rank() == 1) ::kill(::getpid(), SIGKILL);
  await_end(1);
  const std::vector<BlockId> table = harness->take_table(20);
  const std::vector<int> last = {19};
  Batch batch{{{std::span(tokens).first(20), 0, table, last}}};
  const StepHandle step = harness->model().launch(batch).value();
  const auto collected = harness->model().collect(step);
  ASSERT_FALSE(collected);
  EXPECT_EQ(collected.error().code, Errc::kDeadlineExceeded);
  EXPECT_THAT(collected.error().message, testing::HasSubstr("rank 1 did not answer"));
  EXPECT_FALSE(harness->model().launch(batch)) << "the group is the unit of recovery";
}

TEST_F(CudaRanksTest, RanksNeedAnExchange) {
  CudaModelOptions without = options();
  without.tp = {0, 2};
  const ModelConfig config = tiny(64);
  const CudaTestWeights part(config, 7, 0.08F, 0, without.tp);
  const cuda::Stream stream;
  const cuda::DeviceBuffer<std::byte> kv(std::size_t{1} << 20, stream);
  const auto made = make_cuda_model(part.device(), part.image(), part.weights(), kv, without);
  ASSERT_FALSE(made);
  EXPECT_THAT(made.error().message, testing::HasSubstr("2 ranks need an exchange"));
}

}  // namespace
}  // namespace thaw::model
