// The decoder on a GPU: rows are strangers for the whole model, bit for bit, whichever way a token
// came to be computed; draws on the device are the host's; the contract of launch and collect.

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <numeric>
#include <ostream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/error.h"
#include "engine/sampling/sampler.h"
#include "tests/cuda/gpu_test.h"
#include "tests/model/cuda_harness.h"
#include "tests/model/logits_reference.h"
#include "tests/model/model_harness.h"

namespace thaw::model {
namespace {

using testing::HasSubstr;

constexpr int kPrompt = 2100;  ///< tokens

struct Shape {
  const char* name;
  ModelConfig (*config)();  ///< of random weights; null: the default model and real text
  float scale;
};

void PrintTo(const Shape& shape, std::ostream* out) {
  *out << shape.name;
}

ModelConfig tiny_biased() {
  ModelConfig config = tiny_cuda_config(64);
  config.qkv_bias = config.o_bias = true;
  config.tied_embeddings = false;
  return config;
}

ModelConfig tiny_normed() {
  ModelConfig config = tiny_cuda_config(128);
  config.qk_norm = config.rope_factors = true;
  config.layers[1].rope = false;
  return config;
}

ModelConfig tiny_windowed() {
  ModelConfig config = tiny_cuda_config(64);
  config.layers[0].window = 300;
  config.layers[2].window = 17;
  config.rope.half_split = false;
  return config;
}

// Weights of the tiny shapes are large, so that attention and logits are far from flat.
const Shape kShapes[] = {{"tiny_biased", tiny_biased, 0.08F},
                         {"tiny_normed", tiny_normed, 0.08F},
                         {"tiny_windowed", tiny_windowed, 0.08F},
                         {"default_model", nullptr, 0.0F},
                         {"llama_8b", llama_8b_config, 0.02F}};

class CudaModelTest : public cuda::GpuTest, public testing::WithParamInterface<Shape> {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    if (GetParam().config == nullptr) {
      ASSERT_TRUE(std::filesystem::exists(default_model()))
          << "the default model is needed at " << default_model() << ": run `make model`";
      const std::vector<TokenId> text = read_reference().tokens;
      while (prompt() < kPrompt)
        tokens.push_back(text[tokens.size() % text.size()]);
    } else {
      tokens = random_tokens(kPrompt, GetParam().config().vocab_size, 11);
    }
    const int end = prompt();
    wanted = {0, 1, 15, 16, 255, 256, 1000};
    for (int position = end - 40; position < end; ++position)
      wanted.push_back(position);
  }
  // One set of weights for all tests of a shape: 16 GB take a while.
  static CudaTestWeights& weights() {
    static std::unique_ptr<CudaTestWeights> held;
    static std::string of;
    if (of != GetParam().name) {
      held.reset();
      held = GetParam().config == nullptr
                 ? std::make_unique<CudaTestWeights>(gguf_source(default_model()))
                 : std::make_unique<CudaTestWeights>(GetParam().config(), 7, GetParam().scale);
      of = GetParam().name;
    }
    return *held;
  }
  static CudaModelOptions options(bool use_graphs = true) {
    CudaModelOptions options;
    options.max_positions = 4096;
    options.max_rows = 2560;
    options.max_sequences = 20;
    options.use_graphs = use_graphs;
    return options;
  }
  int prompt() const { return static_cast<int>(tokens.size()); }

  /// The whole prompt in one step: what every other way must give.
  LogitsAt whole(CudaHarness& harness) {
    return harness.run(tokens, harness.take_table(prompt()), 0, prompt(), prompt(), wanted);
  }
  static void expect_same(const LogitsAt& expected, const LogitsAt& found, const char* what) {
    EXPECT_FALSE(found.empty()) << what;
    for (const auto& [position, logits] : found) {
      EXPECT_TRUE(same_bits(expected.at(position), logits)) << what << ", position " << position;
    }
  }

  std::vector<TokenId> tokens;
  std::vector<int> wanted;
};

TEST_P(CudaModelTest, LogitsAreNumbersThatDependOnTheText) {
  CudaHarness harness(weights(), options(), 400);
  const LogitsAt logits = whole(harness);
  const auto& last = logits.at(prompt() - 1);
  ASSERT_EQ(last.size(), static_cast<std::size_t>(harness.config().vocab_size));
  double squares = 0;
  for (const float value : last) {
    ASSERT_TRUE(std::isfinite(value));
    squares += static_cast<double>(value) * value;
  }
  EXPECT_GT(std::sqrt(squares / static_cast<double>(last.size())), 0.05);
  std::vector<TokenId> other = tokens;
  other[3] ^= 1;
  const std::vector<int> end = {prompt() - 1};
  const LogitsAt changed =
      harness.run(other, harness.take_table(prompt()), 0, prompt(), prompt(), end);
  EXPECT_FALSE(same_bits(changed.at(prompt() - 1), last)) << "token 3 is out of reach";
}

TEST_P(CudaModelTest, ChunksAndSingleTokensAreTheWhole) {
  CudaHarness harness(weights(), options(), 800);
  const LogitsAt expected = whole(harness);
  const int end = prompt();
  const auto by = [&](int chunk, int last_rows) {
    const std::vector<BlockId> table = harness.take_table(end);
    LogitsAt found = harness.run(tokens, table, 0, end - last_rows, 2048, wanted);
    found.merge(harness.run(tokens, table, end - last_rows, last_rows, chunk, wanted));
    return found;
  };
  expect_same(expected, by(2048, 0), "chunks of 2,048");
  expect_same(expected, by(128, end), "chunks of 128");
  expect_same(expected, by(7, 140), "chunks of 7");
  expect_same(expected, by(1, 40), "decode steps");
}

TEST_P(CudaModelTest, AnAdoptedTrunkIsTheColdRun) {
  CudaHarness harness(weights(), options(), 800);
  const std::vector<BlockId> trunk = harness.take_table(prompt());
  const LogitsAt expected = harness.run(tokens, trunk, 0, prompt(), prompt(), wanted);
  for (const int adopted : {1, 63, 130}) {  // blocks
    std::vector<BlockId> table(trunk.begin(), trunk.begin() + adopted);
    const int first = adopted * kBlockSize;
    for (const BlockId block : harness.take_table(prompt() - first))
      table.push_back(block);
    expect_same(expected, harness.run(tokens, table, first, prompt() - first, 2048, wanted),
                "adopted");
  }
}

// The last rows of the prompt, among strangers: prefill of another text, decode of others, some of
// them on the same trunk.
TEST_P(CudaModelTest, StrangersInTheBatchChangeNothing) {
  CudaHarness harness(weights(), options(), 900);
  const std::vector<BlockId> trunk = harness.take_table(prompt());
  const LogitsAt expected = harness.run(tokens, trunk, 0, prompt(), prompt(), wanted);
  const int start = prompt() - 20;
  const std::vector<TokenId> other = random_tokens(900, harness.config().vocab_size, 5);
  const std::vector<BlockId> other_table = harness.take_table(900);
  harness.run(other, other_table, 0, 500, 500, {});
  // Three branches of the trunk that go on with texts of their own.
  std::vector<std::vector<BlockId>> branches;
  const int shared = start / kBlockSize;
  for (int i = 0; i < 3; ++i) {
    branches.emplace_back(trunk.begin(), trunk.begin() + shared);
    for (const BlockId block : harness.take_blocks(4))
      branches.back().push_back(block);
    harness.run(tokens, branches.back(), shared * kBlockSize, start - shared * kBlockSize, 16, {});
  }
  LogitsAt found;
  const std::vector<int> only = {0};
  for (int i = 0; i < 20; ++i) {
    Batch batch;
    const std::span<const TokenId> all(tokens);
    const int at = start + i;
    const std::size_t width = i % 2 == 0 ? 1 : 17;  // rows of prefill beside it
    const int prefilled = 500 + i / 2 * 18 + (i % 2);
    batch.sequences.push_back(
        {std::span(other).subspan(prefilled, width), prefilled, other_table, only});
    for (const auto& branch : branches)
      batch.sequences.push_back({std::span(other).subspan(i, 1), at, branch, only});
    batch.sequences.push_back({all.subspan(at, 1), at, trunk, only});
    found[at] = harness.step(batch).back();
  }
  expect_same(expected, found, "among strangers");
}

// Rows of decode, one of each of `counts` sequences, with graphs and without.
void expect_graphs_are_direct_launches(CudaTestWeights& weights, CudaModelOptions options,
                                       std::span<const TokenId> tokens,
                                       std::initializer_list<int> counts) {
  const int most = std::max(counts);
  options.max_sequences = most;
  options.use_graphs = true;
  CudaHarness with(weights, options, 2 * most + 8);
  options.use_graphs = false;
  CudaHarness without(weights, options, 2 * most + 8);
  const std::vector<int> only = {0};
  for (const int sequences : counts) {
    std::vector<Logits> found;
    for (CudaHarness* harness : {&with, &without}) {
      std::vector<std::vector<BlockId>> tables;
      Batch batch;
      for (int i = 0; i < sequences; ++i) {
        tables.push_back({static_cast<BlockId>(2 * i), static_cast<BlockId>(2 * i + 1)});
        harness->run(tokens.subspan(i), tables.back(), 0, 3 + i % 20, 32, {});
      }
      for (int i = 0; i < sequences; ++i)
        batch.sequences.push_back({tokens.subspan(i, 1), 3 + i % 20, tables[i], only});
      found.push_back(harness->step(batch));
    }
    ASSERT_EQ(found[0].size(), static_cast<std::size_t>(sequences));
    for (int i = 0; i < sequences; ++i)
      EXPECT_TRUE(same_bits(found[0][i], found[1][i])) << sequences << " rows, row " << i;
  }
}

TEST_P(CudaModelTest, GraphsAreDirectLaunches) {
  expect_graphs_are_direct_launches(weights(), options(), tokens, {1, 2, 3, 5, 9, 17, 20});
}

// By the tile kernel; heads are stored by it, too, from 256 rows on, some of which are nobody's.
TEST_P(CudaModelTest, GraphsOfManyRowsAreDirectLaunches) {
  expect_graphs_are_direct_launches(weights(), options(), tokens, {65, 200, 250, 256});
}

TEST_P(CudaModelTest, GraphsOfASharedTrunkAreDirectLaunches) {
  CudaHarness with(weights(), options(true), 200);
  CudaHarness without(weights(), options(false), 200);
  const std::vector<int> only = {0};
  constexpr int kTrunk = 288;  // of two splits, and whole blocks
  std::vector<BlockId> trunk(kTrunk / kBlockSize);
  std::iota(trunk.begin(), trunk.end(), 0);
  for (CudaHarness* harness : {&with, &without})
    harness->run(tokens, trunk, 0, kTrunk, 32, {});
  // Few rows and many in turn: the items of attention change their width.
  for (const int sequences : {2, 20, 3, 18, 20}) {
    std::vector<Logits> found;
    for (CudaHarness* harness : {&with, &without}) {
      std::vector<std::vector<BlockId>> tables(static_cast<std::size_t>(sequences), trunk);
      Batch batch;
      for (int i = 0; i < sequences; ++i) {
        tables[i].push_back(static_cast<BlockId>(100 + i));
        batch.sequences.push_back({std::span(tokens).subspan(i, 1), kTrunk, tables[i], only});
      }
      found.push_back(harness->step(batch));
    }
    ASSERT_EQ(found[0].size(), static_cast<std::size_t>(sequences));
    for (int i = 0; i < sequences; ++i)
      EXPECT_TRUE(same_bits(found[0][i], found[1][i])) << sequences << " rows, row " << i;
  }
}

TEST_P(CudaModelTest, ADrawAwaitsItsMask) {
  CudaHarness harness(weights(), options(), 100);
  Model& model = harness.model();
  ASSERT_GT(model.max_masked_rows(), 0);
  const std::vector<BlockId> tables[] = {harness.take_table(20), harness.take_table(20)};
  const std::vector<int> only = {0};
  const std::size_t words = (static_cast<std::size_t>(model.config().vocab_size) + 31) / 32;
  for (int position = 0; position < 3; ++position) {
    Batch batch;
    for (int s = 0; s < 2; ++s) {
      batch.sequences.push_back(
          {std::span(tokens).subspan(position, 1), position, tables[s], only});
      batch.sequences.back().draw = DeviceDraw{};
    }
    batch.sequences[1].awaits_mask = true;
    const StepHandle step = model.launch(batch).value();
    EXPECT_THAT(model.launch(batch).error().message, HasSubstr("waits for its masks"));
    EXPECT_THAT(model.collect(step).error().message, HasSubstr("waits for its masks"));
    std::vector<std::uint32_t> mask(words, 0);
    mask[1] = 1U << (3 + position);
    std::vector<std::span<const std::uint32_t>> masks{{}, std::span(mask).first(words - 1)};
    EXPECT_THAT(model.give_masks(step, masks).error().message, HasSubstr("words; "));
    masks[1] = mask;
    EXPECT_THAT(model.give_masks(step, std::span(masks).first(1)).error().message,
                HasSubstr("1 masks for 2 drawn rows"));
    EXPECT_FALSE(model.give_masks(step + 1, masks));
    ASSERT_TRUE(model.give_masks(step, masks));
    EXPECT_FALSE(model.give_masks(step, masks));
    const StepOutput output = model.collect(step).value();
    ASSERT_EQ(output.drawn.size(), 2u);
    EXPECT_EQ(output.drawn[1], 35 + position);
    // Its neighbour draws what it draws without anyone's mask.
    batch.sequences[1].awaits_mask = false;
    const StepHandle again = model.launch(batch).value();
    const TokenId free = output.drawn[0];
    EXPECT_EQ(model.collect(again).value().drawn[0], free);
  }
}

// Tokens of three sequences, drawn on the device with two steps in flight, against logits that the
// host's sampler looks at one step at a time.
TEST_P(CudaModelTest, DrawnTokensAreTheSamplersChoice) {
  constexpr int kTokens = 24;
  const int lengths[] = {5, 40, 300};
  SamplingParams greedy;
  greedy.temperature = 0.0F;
  SamplingParams warm;
  warm.temperature = 0.9F;
  warm.min_p = 0.01F;
  CudaHarness harness(weights(), options(), 400);
  const std::vector<int> only = {0};
  for (SamplingParams params : {greedy, warm}) {
    ASSERT_TRUE(harness.model().can_draw(params));
    const auto draw_of = [&](int s, int position) {
      params.seed = 40 + static_cast<std::uint64_t>(s);
      DeviceDraw draw = DeviceDraw::of(params).value();
      draw.choice_index = static_cast<std::uint32_t>(s);
      draw.position = static_cast<std::uint64_t>(position);
      return draw;
    };
    sampling::Sampler sampler;
    const auto sampled = [&](const std::vector<float>& logits, int s, int position) {
      params.seed = 40 + static_cast<std::uint64_t>(s);
      const std::vector<TokenId> before(static_cast<std::size_t>(position));
      sampling::SamplingContext context;
      context.tokens = before;
      context.choice_index = static_cast<std::uint32_t>(s);
      return sampler.sample(logits, params, context).value().token;
    };
    std::vector<std::vector<TokenId>> expected(3);
    for (int s = 0; s < 3; ++s) {
      const std::vector<BlockId> table = harness.take_table(lengths[s] + kTokens);
      const std::vector<int> last = {lengths[s] - 1};
      LogitsAt logits = harness.run(tokens, table, 0, lengths[s], lengths[s], last);
      TokenId next = sampled(logits.at(lengths[s] - 1), s, lengths[s]);
      for (int i = 0; i < kTokens; ++i) {
        expected[s].push_back(next);
        const std::vector<TokenId> token = {next};
        next = sampled(harness.step({{{token, lengths[s] + i, table, only}}})[0], s,
                       lengths[s] + i + 1);
      }
    }
    std::vector<std::vector<BlockId>> tables;
    for (const int length : lengths)
      tables.push_back(harness.take_table(length + kTokens));
    const std::vector<TokenId> unused = {-7};
    const std::vector<int> last[] = {{lengths[0] - 1}, {lengths[1] - 1}, {lengths[2] - 1}};
    std::vector<std::vector<TokenId>> drawn(3);
    std::vector<StepHandle> flying;
    const auto collect = [&] {
      const StepOutput output = harness.model().collect(flying.front()).value();
      flying.erase(flying.begin());
      ASSERT_EQ(output.num_rows, 0);
      ASSERT_EQ(output.drawn.size(), 3u);
      for (int s = 0; s < 3; ++s)
        drawn[s].push_back(output.drawn[s]);
    };
    for (int step = 0; step < kTokens; ++step) {
      Batch batch;
      for (int s = 0; s < 3; ++s) {
        SequenceRows rows;
        if (step == 0) {
          rows = {std::span(tokens).first(lengths[s]), 0, tables[s], last[s]};
        } else {
          rows = {unused, lengths[s] + step - 1, tables[s], only};
          rows.first_token = DrawnToken{flying.back(), s};
        }
        rows.draw = draw_of(s, lengths[s] + step);
        batch.sequences.push_back(rows);
      }
      flying.push_back(harness.model().launch(batch).value());
      if (flying.size() == 2) collect();
    }
    while (!flying.empty())
      collect();
    EXPECT_EQ(drawn, expected);
    EXPECT_THAT(expected, testing::Contains(testing::Not(testing::Each(expected[0][0]))));
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, CudaModelTest, testing::ValuesIn(kShapes),
                         [](const auto& info) { return std::string(info.param.name); });

class CudaStepTest : public cuda::GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    weights = std::make_unique<CudaTestWeights>(tiny_biased(), 3, 0.08F);
    harness = std::make_unique<CudaHarness>(*weights, options(), 96);
    tokens = random_tokens(400, harness->config().vocab_size, 2);
  }
  static CudaModelOptions options() {
    CudaModelOptions options;
    options.max_positions = 512;
    options.max_rows = 300;
    options.max_sequences = 4;
    return options;
  }
  std::string error_of(const Batch& batch) {
    const auto launched = harness->model().launch(batch);
    EXPECT_FALSE(launched);
    return launched ? std::string() : launched.error().message;
  }

  std::unique_ptr<CudaTestWeights> weights;
  std::unique_ptr<CudaHarness> harness;
  std::vector<TokenId> tokens;
  const std::vector<int> last_ = {3};
  const std::vector<int> only_ = {0};
};

TEST_F(CudaStepTest, NamesWhatIsWrongAndServesOn) {
  const std::span<const TokenId> four = std::span(tokens).first(4);
  const std::vector<BlockId> table = {1};
  const std::vector<BlockId> outside = {96};
  SequenceRows rows{four, 0, table, last_};
  EXPECT_THAT(error_of({{{four, 0, outside, {}}}}), HasSubstr("block 96; 0 to 95"));
  EXPECT_THAT(error_of({{{four, 510, table, {}}}}), HasSubstr("positions 510 to 513"));
  const std::vector<BlockId> large(30, 2);
  EXPECT_THAT(error_of({{{std::span(tokens).first(321), 0, large, {}}}}),
              HasSubstr("321 rows of 1 sequences; up to 320 and 4"));
  EXPECT_THAT(error_of({{rows, rows, rows, rows, rows}}), HasSubstr("of 5 sequences"));
  rows.draw = DeviceDraw{.temperature = -1.0F};
  EXPECT_THAT(error_of({{rows}}), HasSubstr("temperature"));
  rows.draw = DeviceDraw{};
  rows.logit_rows = {};
  EXPECT_THAT(error_of({{rows}}), HasSubstr("asks for no logits"));
  rows.logit_rows = last_;
  rows.first_token = DrawnToken{0, 0};
  EXPECT_THAT(error_of({{rows}}), HasSubstr("drawn by step 0; one of the last two"));
  rows.first_token.reset();
  const StepHandle first = harness->model().launch({{rows}}).value();
  EXPECT_TRUE(harness->model().collect(first));
  rows.first_token = DrawnToken{first, 1};
  EXPECT_THAT(error_of({{rows}}), HasSubstr("drawn row 1 of a step with 1"));
  rows.first_token = DrawnToken{first, 0};
  const StepHandle second = harness->model().launch({{rows}}).value();
  EXPECT_FALSE(harness->model().collect(second + 1));
  EXPECT_TRUE(harness->model().collect(second));
  EXPECT_THAT(harness->model().copy_block(0, 96).error().message, HasSubstr("block 96"));
}

TEST_F(CudaStepTest, OutputsStayUntilTheNextCollect) {
  CudaModel& model = harness->model();
  ASSERT_EQ(model.max_in_flight(), 2);
  const std::span<const TokenId> one = std::span(tokens).first(4);
  const std::span<const TokenId> two = std::span(tokens).subspan(4, 4);
  const std::vector<BlockId> table = {1};
  const Logits first = harness->step({{{one, 0, table, last_}}});
  const Logits second = harness->step({{{two, 0, table, last_}}});
  ASSERT_FALSE(same_bits(first[0], second[0]));
  const StepHandle a = model.launch({{{one, 0, table, last_}}}).value();
  const StepHandle b = model.launch({{{two, 0, table, last_}}}).value();
  EXPECT_THAT(error_of({{{one, 0, table, last_}}}), HasSubstr("2 steps wait"));
  const StepOutput output = model.collect(a).value();
  const StepHandle c = model.launch({{{two, 0, table, last_}}}).value();
  EXPECT_TRUE(same_bits(output.row(0), first[0]));
  EXPECT_TRUE(same_bits(model.collect(b).value().row(0), second[0]));
  EXPECT_TRUE(same_bits(model.collect(c).value().row(0), second[0]));
}

TEST_F(CudaStepTest, ManyLogitRowsAndMixedDrawsComeInOrder) {
  // 200 rows of logits go through the tail in groups, beside rows that are drawn.
  const std::vector<BlockId> table = harness->take_table(200);
  std::vector<int> all(200);
  std::iota(all.begin(), all.end(), 0);
  const Logits expected = harness->step({{{std::span(tokens).first(200), 0, table, all}}});
  ASSERT_EQ(expected.size(), 200u);
  Batch batch;
  std::vector<std::vector<BlockId>> tables;
  for (int i = 0; i < 3; ++i)
    tables.push_back(harness->take_table(96));
  std::vector<int> rows(90);
  std::iota(rows.begin(), rows.end(), 0);
  for (int i = 0; i < 3; ++i) {
    batch.sequences.push_back({std::span(tokens).first(90), 0, tables[i], rows});
    if (i != 1) batch.sequences.back().draw = DeviceDraw{};
  }
  const StepHandle handle = harness->model().launch(batch).value();
  const StepOutput output = harness->model().collect(handle).value();
  ASSERT_EQ(output.num_rows, 89 + 90 + 89);
  ASSERT_EQ(output.drawn.size(), 2u);
  int at = 0;
  for (int i = 0; i < 3; ++i)
    for (int row = 0; row < (i == 1 ? 90 : 89); ++row)
      EXPECT_TRUE(same_bits(output.row(at++), expected[row])) << i << " " << row;
  EXPECT_EQ(output.drawn[0], argmax(expected[89]));
  EXPECT_EQ(output.drawn[1], output.drawn[0]);
}

TEST_F(CudaStepTest, ANanIsItsOwnRowsTrouble) {
  // The blocks before position 32 were never written: NaN in every key.
  const std::vector<BlockId> bad = {0, 1, 2};
  const std::vector<BlockId> good = harness->take_table(16);
  const Logits expected = harness->step({{{std::span(tokens).first(1), 0, good, only_}}});
  Batch batch;
  batch.sequences.push_back({std::span(tokens).first(1), 32, bad, only_});
  batch.sequences.push_back({std::span(tokens).first(1), 0, good, only_});
  batch.sequences[0].draw = batch.sequences[1].draw = DeviceDraw{};
  const StepHandle a = harness->model().launch(batch).value();
  batch.sequences[0].first_position = 33;
  batch.sequences[0].first_token = DrawnToken{a, 0};
  batch.sequences[1].draw.reset();
  const StepHandle b = harness->model().launch(batch).value();
  const StepOutput first = harness->model().collect(a).value();
  EXPECT_EQ(first.drawn[0], -1);
  EXPECT_EQ(first.drawn[1], argmax(expected[0]));
  const StepOutput second = harness->model().collect(b).value();
  EXPECT_EQ(second.drawn[0], -1);
  EXPECT_TRUE(same_bits(second.row(0), expected[0]));
}

TEST_F(CudaStepTest, ACopiedBlockGoesOnAlone) {
  const std::vector<BlockId> table = harness->take_table(32);
  const std::vector<int> wanted = {21, 22};
  harness->run(tokens, table, 0, 21, 32, {});
  const std::vector<BlockId> fork = {table[0], harness->take_blocks(1)[0]};
  ASSERT_TRUE(harness->model().copy_block(table[1], fork[1]));
  const LogitsAt expected = harness->run(tokens, table, 21, 2, 1, wanted);
  const LogitsAt forked = harness->run(tokens, fork, 21, 2, 1, wanted);
  for (const int position : wanted)
    EXPECT_TRUE(same_bits(expected.at(position), forked.at(position))) << position;
}

TEST_F(CudaStepTest, WhatHasNoRoomInTheWorkspaceGivesTheSameBits) {
  CudaModelOptions tight = options();
  tight.max_partials = 3;  // of the two rows with two splits each, one finds no room
  CudaHarness small(*weights, tight, 96);
  std::vector<Logits> found;
  for (CudaHarness* each : {harness.get(), &small}) {
    const std::vector<BlockId> one = each->take_table(320);
    const std::vector<BlockId> two = each->take_table(320);
    each->run(tokens, one, 0, 300, 280, {});
    each->run(tokens, two, 0, 310, 280, {});
    Logits logits = each->step({{{std::span(tokens).subspan(7, 1), 300, one, only_},
                                 {std::span(tokens).subspan(9, 1), 310, two, only_}}});
    for (auto& row : each->step({{{std::span(tokens).subspan(1, 4), 301, one, last_}}}))
      logits.push_back(std::move(row));
    found.push_back(std::move(logits));
  }
  ASSERT_EQ(found[0].size(), 3u);
  for (int i = 0; i < 3; ++i)
    EXPECT_TRUE(same_bits(found[0][i], found[1][i])) << i;
}

TEST_F(CudaStepTest, RefusesWhatCannotWork) {
  const auto error = [&](ModelConfig config, CudaModelOptions options, std::size_t kv_bytes) {
    const CudaTestWeights own(config, 1);
    const cuda::Stream stream;
    const cuda::DeviceBuffer<std::byte> kv(kv_bytes, stream);
    const auto made = make_cuda_model(own.device(), own.image(), own.weights(), kv, options);
    EXPECT_FALSE(made);
    return made ? std::string() : made.error().message;
  };
  EXPECT_THAT(error(tiny_biased(), {.max_positions = 4097}, 1 << 20), HasSubstr("4097"));
  EXPECT_THAT(error(tiny_biased(), {}, 100), HasSubstr("100 bytes holds no block"));
  EXPECT_THAT(error(tiny_biased(), {.max_sequences = 0}, 1 << 20), HasSubstr("max_sequences"));
  const auto short_weights =
      make_cuda_model(weights->device(), weights->image(), weights->weights().subspan(0, 8192),
                      weights->weights(), {});
  ASSERT_FALSE(short_weights);
  EXPECT_THAT(short_weights.error().message, HasSubstr("behind the 8192 bytes"));
}

}  // namespace
}  // namespace thaw::model
