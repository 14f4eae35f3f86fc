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
  const StepHandle b = model.launch({{{others, 0, table_, last_}}}).value();
  EXPECT_FALSE(model.launch({{{tokens_, 0, table_, last_}}})) << "a third step in flight";
  EXPECT_FALSE(model.collect(b)) << "out of order";
  const StepLogits logits = model.collect(a).value();
  const StepHandle c = model.launch({{{others, 0, table_, last_}}}).value();
  EXPECT_TRUE(same_bits(logits.row(0), first[0])) << "launching changed collected logits";
  EXPECT_TRUE(same_bits(model.collect(b).value().row(0), second[0]));
  EXPECT_TRUE(model.collect(c));
  EXPECT_FALSE(model.collect(c)) << "twice";
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
