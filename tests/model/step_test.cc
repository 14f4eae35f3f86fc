// The contract of launch and collect: what a batch may hold, how long logits stay, no allocation.

#include <atomic>
#include <cstdlib>
#include <new>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/model_harness.h"

namespace {
std::atomic<int> num_allocations{0};
}  // namespace

// Not inlined: GCC would see free() of what came from a new it did not look into.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++num_allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
// Libraries use it too, and what it gives comes back to the deletes below.
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  ++num_allocations;
  return std::malloc(size);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace thaw::model {
namespace {

using testing::HasSubstr;

class Step : public testing::Test {
 protected:
  Step() : harness_(tiny_model_path("q4_1"), {.num_blocks = 16, .max_positions = 100}) {}

  std::string error_of(const SequenceRows& rows) {
    const auto launched = harness_.model().launch({{rows}});
    EXPECT_FALSE(launched);
    return launched ? std::string() : launched.error().message;
  }

  Harness harness_;
  const std::vector<TokenId> tokens_ = {5, 6, 7, 8};
  const std::vector<BlockId> table_ = {3, 4};
  const std::vector<int> last_ = {3};
};

TEST_F(Step, NamesWhatIsWrongWithABatch) {
  const std::vector<TokenId> too_large = {5, 520};
  const std::vector<TokenId> negative = {-1};
  const std::vector<BlockId> outside = {16};
  const std::vector<int> row_outside = {4};
  const std::vector<int> unordered = {2, 1};
  const std::vector<BlockId> whole(7, 0);
  EXPECT_THAT(error_of({{}, 0, table_, {}}), HasSubstr("no tokens"));
  EXPECT_THAT(error_of({too_large, 0, table_, {}}), HasSubstr("token 520; 0 to 519"));
  EXPECT_THAT(error_of({negative, 0, table_, {}}), HasSubstr("token -1"));
  EXPECT_THAT(error_of({tokens_, 97, whole, {}}), HasSubstr("positions 97 to 100; 0 to 99"));
  EXPECT_THAT(error_of({tokens_, -1, table_, {}}), HasSubstr("positions -1"));
  EXPECT_THAT(error_of({tokens_, 29, table_, {}}), HasSubstr("need 3"));
  EXPECT_THAT(error_of({tokens_, 0, outside, {}}), HasSubstr("block 16; 0 to 15"));
  EXPECT_THAT(error_of({tokens_, 0, table_, row_outside}), HasSubstr("logit row 4"));
  EXPECT_THAT(error_of({tokens_, 0, table_, unordered}), HasSubstr("logit row 1"));
  EXPECT_FALSE(harness_.model().launch({}));
  SequenceRows drawn{tokens_, 0, table_, last_};
  drawn.draw.emplace();
  EXPECT_THAT(error_of(drawn), HasSubstr("draws no tokens"));
  // And it still serves.
  EXPECT_EQ(harness_.step({{{tokens_, 0, table_, last_}}}).size(), 1u);
}

TEST_F(Step, AnyRowsMayAskForLogits) {
  const std::vector<int> all = {0, 1, 2, 3};
  const std::vector<int> some = {1, 3};
  const auto every = harness_.step({{{tokens_, 0, table_, all}}});
  const auto chosen = harness_.step({{{tokens_, 0, table_, some}}});
  ASSERT_EQ(every.size(), 4u);
  ASSERT_EQ(chosen.size(), 2u);
  EXPECT_TRUE(same_bits(every[1], chosen[0]));
  EXPECT_TRUE(same_bits(every[3], chosen[1]));
  EXPECT_TRUE(harness_.step({{{tokens_, 0, table_, {}}}}).empty());
}

TEST_F(Step, LogitsStayUntilTheNextCollect) {
  Model& model = harness_.model();
  const std::vector<TokenId> others = {9, 10, 11, 12};
  const auto first = harness_.step({{{tokens_, 0, table_, last_}}});
  const auto second = harness_.step({{{others, 0, table_, last_}}});
  ASSERT_FALSE(same_bits(first[0], second[0]));

  const StepHandle a = model.launch({{{tokens_, 0, table_, last_}}}).value();
  EXPECT_FALSE(model.launch({{{others, 0, table_, last_}}})) << "a second step in flight";
  EXPECT_FALSE(model.collect(a + 1)) << "not launched";
  const StepOutput logits = model.collect(a).value();
  const StepHandle b = model.launch({{{others, 0, table_, last_}}}).value();
  EXPECT_TRUE(same_bits(logits.row(0), first[0])) << "launching changed collected logits";
  EXPECT_FALSE(model.collect(a)) << "twice";
  EXPECT_TRUE(same_bits(model.collect(b).value().row(0), second[0]));
}

TEST_F(Step, ABlockIsCopiedWhole) {
  Model& model = harness_.model();
  const auto first = harness_.step({{{tokens_, 0, table_, last_}}});
  ASSERT_TRUE(model.copy_block(3, 7));
  const std::vector<TokenId> next = {9};
  const std::vector<int> only = {0};
  const std::vector<BlockId> copy = {7};
  const auto here = harness_.step({{{next, 4, table_, only}}});
  const auto there = harness_.step({{{next, 4, copy, only}}});
  EXPECT_TRUE(same_bits(here[0], there[0]));
}

TEST_F(Step, TheViewOfKvTellsWhatSnapshotsNeed) {
  const KvView& kv = harness_.model().kv();
  EXPECT_EQ(kv.block_bytes, kv_block_bytes(harness_.config(), ops::KvDType::kBF16));
  EXPECT_EQ(kv.num_blocks, 16u);
  EXPECT_EQ(kv.layout,
            "bf16 [layers=3][k,v][kv_heads=2][k: head_dim=16, block=16; v: block, head_dim]");
}

TEST(DeviceDraw, SaysWhatNeedsNoLogitsOnTheHost) {
  SamplingParams params;
  params.temperature = 0.5F;
  params.min_p = 0.1F;
  params.seed = 7;
  const auto draw = DeviceDraw::of(params);
  ASSERT_TRUE(draw);
  EXPECT_EQ(draw->temperature, 0.5F);
  EXPECT_EQ(draw->min_p, 0.1F);
  EXPECT_EQ(draw->seed, 7u);

  const auto with = [&params](auto change) {
    SamplingParams changed = params;
    change(changed);
    return DeviceDraw::of(changed);
  };
  EXPECT_FALSE(with([](auto& p) { p.top_k = 2; }));
  EXPECT_FALSE(with([](auto& p) { p.top_p = 0.9F; }));
  EXPECT_FALSE(with([](auto& p) { p.repetition_penalty = 1.1F; }));
  EXPECT_FALSE(with([](auto& p) { p.presence_penalty = 1.0F; }));
  EXPECT_FALSE(with([](auto& p) { p.frequency_penalty = 1.0F; }));
  EXPECT_FALSE(with([](auto& p) { p.logit_bias = {{1, 1.0F}}; }));
  EXPECT_FALSE(with([](auto& p) { p.top_logprobs = 0; }));
  EXPECT_FALSE(with([](auto& p) { p.min_tokens = 1; }));
  EXPECT_TRUE(with([](auto& p) { p.min_tokens = 1, p.ignore_eos = true; })) << "no stops to bar";
  EXPECT_EQ(with([](auto& p) { p.top_k = 1; })->temperature, 0.0F);
  EXPECT_TRUE(with([](auto& p) { p.temperature = 0.0F, p.top_k = 5, p.top_p = 0.5F; }));
}

TEST_F(Step, DecodeAllocatesNothing) {
  const std::vector<int> only = {0};
  Batch batch;
  batch.sequences.push_back({std::span(tokens_).first(1), 4, table_, only});
  batch.sequences.push_back({std::span(tokens_).first(1), 5, std::span(table_).last(1), only});
  harness_.step({{{tokens_, 0, table_, last_}}});
  for (int i = 0; i < 4; ++i)
    harness_.step(batch);
  Model& model = harness_.model();
  const int before = num_allocations;
  for (int i = 0; i < 8; ++i) {
    batch.sequences[0].first_position = 4 + i;
    const auto handle = model.launch(batch);
    ASSERT_TRUE(handle);
    ASSERT_TRUE(model.collect(*handle));
  }
  EXPECT_EQ(num_allocations - before, 0);
}

}  // namespace
}  // namespace thaw::model
