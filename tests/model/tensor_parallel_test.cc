// The rule by which ranks share a model, without a GPU: every row of every matrix is on exactly one
// rank, where that rank's kernels look for it, and nothing is cut along the inputs of a sum.

#include "engine/model/tensor_parallel.h"

#include <algorithm>
#include <cstring>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/model/cuda_image.h"
#include "engine/ops/weight_tiles.h"
#include "tests/model/model_harness.h"

namespace thaw::model {
namespace {

using ops::cuda::weight_index;
using testing::ElementsAre;
using testing::HasSubstr;

ModelConfig llama_8b() {
  ModelConfig config;
  config.num_layers = 32;
  config.hidden_size = 4096;
  config.intermediate_size = 14336;
  config.num_heads = 32;
  config.num_kv_heads = 8;
  config.head_dim = 128;
  config.vocab_size = 128256;
  return config;
}

TEST(ShardBounds, AreEvenAndMeetTheKernels) {
  const ShardBounds bounds(llama_8b(), 2);
  EXPECT_THAT(bounds.heads, ElementsAre(0, 16, 32));
  EXPECT_THAT(bounds.kv_heads, ElementsAre(0, 4, 8));
  EXPECT_THAT(bounds.attended, ElementsAre(0, 2048, 4096));
  EXPECT_THAT(bounds.hidden, ElementsAre(0, 2048, 4096));
  EXPECT_THAT(bounds.intermediate, ElementsAre(0, 7168, 14336));
  EXPECT_THAT(bounds.vocabulary, ElementsAre(0, 64128, 128256));
  ModelConfig odd = llama_8b();
  odd.vocab_size = 1003;
  odd.intermediate_size = 64 * 7;
  EXPECT_THAT(ShardBounds(odd, 2).vocabulary, ElementsAre(0, 496, 1003));
  EXPECT_THAT(ShardBounds(odd, 2).intermediate, ElementsAre(0, 192, 448));
  EXPECT_THAT(ShardBounds(odd, 1).vocabulary, ElementsAre(0, 1003));
}

TEST(CheckTensorParallel, NamesWhatCanBeHad) {
  for (const int size : {1, 2, 4, 8})
    EXPECT_TRUE(check_tensor_parallel(llama_8b(), {size - 1, size})) << size;
  ModelConfig small = llama_8b();
  small.num_heads = 9;
  small.num_kv_heads = 3;
  EXPECT_TRUE(check_tensor_parallel(small, {0, 3}));
  const auto checked = check_tensor_parallel(small, {0, 2});
  ASSERT_FALSE(checked);
  EXPECT_EQ(checked.error().code, Errc::kUnsupported);
  EXPECT_THAT(checked.error().message, HasSubstr("2 ranks for 9 query and 3 KV heads; 1, 3 can"));
  EXPECT_EQ(check_tensor_parallel(small, {3, 3}).error().code, Errc::kInvalidArgument);
  EXPECT_EQ(check_tensor_parallel(small, {0, 9}).error().code, Errc::kInvalidArgument);
}

class PlanShard : public testing::TestWithParam<std::string> {
 protected:
  PlanShard()
      : loaded_(build_image(gguf_source(tiny_model_path(GetParam())),
                            {.device = ops::DeviceKind::kCuda}, threads_)
                    .value()),
        memory_(map_fd(loaded_.fd.get(), loaded_.size_bytes, MapAccess::kReadOnly).value()),
        image_(checkpoint::WeightImageView::open(memory_.bytes()).value()) {}

  /// A rank's bytes, as its upload puts them together.
  std::vector<std::byte> bytes_of(const ShardPlan& plan) const {
    std::vector<std::byte> bytes(plan.total_bytes, std::byte{0xff});
    for (const ShardCopy& copy : plan.copies) {
      EXPECT_LE(copy.from + copy.bytes, memory_.size_bytes());
      EXPECT_LE(copy.to + copy.bytes, plan.total_bytes);
      std::memcpy(bytes.data() + copy.to, memory_.data() + copy.from, copy.bytes);
    }
    return bytes;
  }

  /// Row `row` of a matrix, or element of a vector.
  static std::vector<std::uint16_t> row_of(const std::byte* data,
                                           const checkpoint::WeightEntry& entry, int row) {
    if (entry.packing == 0) {
      std::vector<std::uint16_t> element(2);
      std::memcpy(element.data(), data + static_cast<std::size_t>(row) * 4, 4);
      return element;
    }
    std::vector<std::uint16_t> values(static_cast<std::size_t>(entry.cols));
    for (int col = 0; col < entry.cols; ++col)
      std::memcpy(&values[static_cast<std::size_t>(col)],
                  data + 2 * weight_index(row, col, static_cast<int>(entry.cols)), 2);
    return values;
  }

  ThreadPool threads_{2};
  LoadedImage loaded_;
  Mapping memory_;
  checkpoint::WeightImageView image_;
};

TEST_P(PlanShard, EveryRowIsOnOneRankAndWhole) {
  const ModelConfig& config = loaded_.config;
  ASSERT_EQ(config.num_kv_heads % 2, 0);
  const int q = config.num_heads * config.head_dim;
  const int kv = config.num_kv_heads * config.head_dim;
  std::map<std::string, std::vector<int>> seen;  // rows of the image's entries, rank after rank
  for (int rank = 0; rank < 2; ++rank) {
    const ShardPlan plan = plan_shard(image_, config, {rank, 2}).value();
    const std::vector<std::byte> bytes = bytes_of(plan);
    for (const checkpoint::WeightEntry& part : plan.entries) {
      const bool tied_head = part.name == "head" && config.tied_embeddings;
      const checkpoint::WeightEntry* whole = image_.find(tied_head ? "token_embedding" : part.name);
      ASSERT_NE(whole, nullptr) << part.name;
      const bool is_matrix = whole->packing != 0;
      if (is_matrix) {
        // Inputs are never divided.
        ASSERT_EQ(part.cols, whole->cols) << part.name;
      }
      const int count = static_cast<int>(is_matrix ? part.rows : part.cols);
      const int total = static_cast<int>(is_matrix ? whole->rows : whole->cols);
      // The row of the whole for each of the part's, written down the plainest way.
      const auto row_in_whole = [&](int row) {
        if (part.name.ends_with("qkv") || part.name.ends_with("qkv_bias")) {
          if (row < q / 2) return rank * (q / 2) + row;
          if (row < q / 2 + kv / 2) return q + rank * (kv / 2) + row - q / 2;
          return q + kv + rank * (kv / 2) + row - q / 2 - kv / 2;
        }
        if (part.name.ends_with("norm") || part.name == "token_embedding" ||
            part.name == "rope_factors")
          return row;
        return (rank == 0 ? 0 : total - count) + row;
      };
      for (int row = 0; row < count; ++row) {
        const int from = row_in_whole(row);
        ASSERT_LT(from, total) << part.name;
        seen[part.name].push_back(from);
        ASSERT_EQ(row_of(bytes.data() + part.offset, part, row),
                  row_of(image_.data(*whole).data(), *whole, from))
            << part.name << ", rank " << rank << ", row " << row;
      }
    }
  }
  for (auto& [name, rows] : seen) {
    std::ranges::sort(rows);
    const bool everywhere =
        name.ends_with("norm") || name == "token_embedding" || name == "rope_factors";
    const int copies = everywhere ? 2 : 1;
    for (std::size_t i = 0; i < rows.size(); ++i)
      ASSERT_EQ(rows[i], static_cast<int>(i) / copies) << name;
  }
  for (const CudaEntry& entry : cuda_entries(config))
    EXPECT_EQ(seen[entry.name].size() %
                  static_cast<std::size_t>(entry.is_matrix ? entry.rows : entry.cols),
              0u)
        << entry.name;
  EXPECT_TRUE(seen.contains("head"));
}

TEST_P(PlanShard, OneRankHasTheImage) {
  const ShardPlan plan = plan_shard(image_, loaded_.config, {0, 1}).value();
  ASSERT_EQ(plan.copies.size(), 1u);
  EXPECT_EQ(plan.copies[0].from, 0u);
  EXPECT_EQ(plan.copies[0].to, 0u);
  for (const checkpoint::WeightEntry& entry : image_.entries())
    EXPECT_EQ(plan.find(entry.name)->offset, entry.offset);
}

INSTANTIATE_TEST_SUITE_P(TinyModels, PlanShard,
                         testing::Values("cuda-f32", "cuda-mixed", "cuda-qwen2", "cuda-qwen3",
                                         "cuda-smollm3"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace thaw::model
