// Images for CUDA, byte for byte, without a GPU: every entry against a packing written down here in
// the plainest way, and what is refused.

#include "engine/model/cuda_image.h"

#include <cstring>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/half.h"
#include "engine/checkpoint/dequantize.h"
#include "engine/model/tensor_list.h"
#include "engine/ops/tile_packing.h"
#include "tests/model/model_harness.h"

namespace thaw::model {
namespace {

using testing::HasSubstr;

const ops::PackingOptions kCuda{.device = ops::DeviceKind::kCuda};

class CudaImage : public testing::TestWithParam<std::string> {
 protected:
  explicit CudaImage(const std::string& name = GetParam())
      : source_(gguf_source(tiny_model_path(name))),
        loaded_(build_image(source_, kCuda, threads_).value()),
        memory_(map_fd(loaded_.fd.get(), loaded_.size_bytes, MapAccess::kReadOnly).value()),
        image_(checkpoint::WeightImageView::open(memory_.bytes()).value()) {}

  std::vector<float> stored(const std::string& gguf_name) const {
    const checkpoint::StoredTensor* tensor = source_.tensors->find_tensor(gguf_name);
    if (tensor == nullptr) return {};
    std::vector<float> values(static_cast<std::size_t>(tensor->rows() * tensor->cols()));
    checkpoint::dequantize(tensor->dtype, tensor->data, values);
    return values;
  }

  /// Row-major rows of an entry: `row_of(r)` is the r-th row's values.
  void expect_matrix(const std::string& name, const std::vector<std::vector<float>>& rows) {
    const checkpoint::WeightEntry* entry = image_.find(name);
    ASSERT_NE(entry, nullptr) << name;
    const std::size_t cols = rows[0].size();
    EXPECT_EQ(entry->packing, 13u) << name;
    EXPECT_EQ(entry->rows, static_cast<std::int64_t>(rows.size())) << name;
    EXPECT_EQ(entry->cols, static_cast<std::int64_t>(cols)) << name;
    const std::size_t groups = (rows.size() + 15) / 16;
    std::vector<std::uint16_t> expected(groups * 16 * cols, 0);
    for (std::size_t r = 0; r < rows.size(); ++r) {
      for (std::size_t c = 0; c < cols; ++c) {
        // [row / 16][col / 64], then 2 x 8 core matrices of 8 x 8.
        const std::size_t tile = (r / 16 * (cols / 64) + c / 64) * 1024;
        const std::size_t core = (r % 16 / 8 * 8 + c % 64 / 8) * 64;
        expected[tile + core + r % 8 * 8 + c % 8] = float_to_bf16(rows[r][c]);
      }
    }
    const auto bytes = image_.data(*entry);
    ASSERT_EQ(bytes.size(), expected.size() * 2) << name;
    EXPECT_EQ(std::memcmp(bytes.data(), expected.data(), bytes.size()), 0) << name;
  }
  void expect_vector(const std::string& name, const std::vector<float>& values) {
    const checkpoint::WeightEntry* entry = image_.find(name);
    ASSERT_NE(entry, nullptr) << name;
    EXPECT_EQ(entry->packing, 0u) << name;
    const auto bytes = image_.data(*entry);
    ASSERT_EQ(bytes.size(), values.size() * 4) << name;
    EXPECT_EQ(std::memcmp(bytes.data(), values.data(), bytes.size()), 0) << name;
  }

  static std::vector<std::vector<float>> rows_of(const std::vector<float>& values, int cols) {
    std::vector<std::vector<float>> rows;
    for (std::size_t at = 0; at < values.size(); at += static_cast<std::size_t>(cols))
      rows.emplace_back(values.begin() + static_cast<std::ptrdiff_t>(at),
                        values.begin() + static_cast<std::ptrdiff_t>(at) + cols);
    return rows;
  }

  ThreadPool threads_{2};
  ModelSource source_;
  LoadedImage loaded_;
  Mapping memory_;
  checkpoint::WeightImageView image_;
};

template <typename T>
std::vector<T> joined(std::vector<T> first, const std::vector<T>& second) {
  first.insert(first.end(), second.begin(), second.end());
  return first;
}

TEST_P(CudaImage, EveryEntryIsTheReferencePacking) {
  const ModelConfig& config = loaded_.config;
  const int hidden = config.hidden_size;
  std::size_t expected_entries = 0;
  const auto matrix = [&](const std::string& name, const std::vector<std::vector<float>>& rows) {
    expect_matrix(name, rows);
    ++expected_entries;
  };
  const auto vector = [&](const std::string& name, const std::vector<float>& values) {
    expect_vector(name, values);
    ++expected_entries;
  };
  matrix("token_embedding", rows_of(stored("token_embd.weight"), hidden));
  for (int i = 0; i < config.num_layers; ++i) {
    const std::string blk = "blk." + std::to_string(i) + ".";
    const std::string layer = "layers." + std::to_string(i) + ".";
    const auto qkv = [&](const std::string& suffix) {
      return joined(joined(stored(blk + "attn_q" + suffix), stored(blk + "attn_k" + suffix)),
                    stored(blk + "attn_v" + suffix));
    };
    vector(layer + "attention_norm", stored(blk + "attn_norm.weight"));
    matrix(layer + "qkv", rows_of(qkv(".weight"), hidden));
    if (config.qkv_bias) vector(layer + "qkv_bias", qkv(".bias"));
    if (config.qk_norm) {
      vector(layer + "q_norm", stored(blk + "attn_q_norm.weight"));
      vector(layer + "k_norm", stored(blk + "attn_k_norm.weight"));
    }
    matrix(layer + "o",
           rows_of(stored(blk + "attn_output.weight"), config.num_heads * config.head_dim));
    vector(layer + "ffn_norm", stored(blk + "ffn_norm.weight"));
    const auto gate = rows_of(stored(blk + "ffn_gate.weight"), hidden);
    const auto up = rows_of(stored(blk + "ffn_up.weight"), hidden);
    std::vector<std::vector<float>> gate_up;
    for (std::size_t at = 0; at < gate.size(); at += 8) {
      gate_up.insert(gate_up.end(), gate.begin() + at, gate.begin() + at + 8);
      gate_up.insert(gate_up.end(), up.begin() + at, up.begin() + at + 8);
    }
    matrix(layer + "gate_up", gate_up);
    matrix(layer + "down", rows_of(stored(blk + "ffn_down.weight"), config.intermediate_size));
  }
  vector("output_norm", stored("output_norm.weight"));
  if (!config.tied_embeddings) matrix("head", rows_of(stored("output.weight"), hidden));
  EXPECT_EQ(image_.entries().size(), expected_entries);
  const std::vector<CudaEntry> entries = cuda_entries(config);
  ASSERT_EQ(entries.size(), expected_entries);
  for (std::size_t i = 0; i < entries.size(); ++i) {
    EXPECT_EQ(entries[i].name, image_.entries()[i].name);
    EXPECT_EQ(entries[i].rows, image_.entries()[i].rows) << entries[i].name;
    EXPECT_EQ(entries[i].cols, image_.entries()[i].cols) << entries[i].name;
  }
  EXPECT_TRUE(image_.verify(threads_));
}

INSTANTIATE_TEST_SUITE_P(Tiny, CudaImage,
                         testing::Values("cuda-f32", "cuda-mixed", "cuda-qwen2", "cuda-qwen3",
                                         "cuda-smollm3"),
                         [](const auto& info) { return info.param.substr(5); });

TEST(CudaImageRefusal, NamesWhatTheKernelsLack) {
  const auto error = [](const std::string& path, ops::PackingOptions packing) {
    packing.device = ops::DeviceKind::kCuda;
    const ModelSource source = model_source(path);
    const auto plan = plan_image(source, packing, Hash128{});
    EXPECT_FALSE(plan) << "it was planned";
    if (plan) return std::string();
    EXPECT_EQ(plan.error().code, Errc::kUnsupported);
    EXPECT_THAT(plan.error().message, HasSubstr(path));
    return plan.error().message;
  };
  EXPECT_THAT(error(tiny_model_path("f32"), {}), HasSubstr("head_dim is 16; 64 and 128"));
  const std::string fits = tiny_model_path("cuda-f32");
  EXPECT_THAT(error(fits, {ops::ComputeMode::kExact32}), HasSubstr("float32 are not supported"));
  EXPECT_THAT(error(fits, {.quantize = ops::Quantize::kQ8_0}), HasSubstr("kernels read bf16"));
  EXPECT_THAT(error(fits, {.quantize = ops::Quantize::kF16}), HasSubstr("kernels read bf16"));
}

TEST(CudaImageRefusal, ChecksEveryLimit) {
  const ModelConfig fits = gguf_source(tiny_model_path("cuda-f32")).config;
  const auto error = [&fits](auto change) {
    ModelConfig config = fits;
    change(config);
    const auto checked = check_cuda_model(config, {});
    EXPECT_FALSE(checked);
    return checked ? std::string() : checked.error().message;
  };
  EXPECT_TRUE(check_cuda_model(fits, {.quantize = ops::Quantize::kBF16}));
  EXPECT_THAT(error([](ModelConfig& c) { c.hidden_size = 96; }), HasSubstr("hidden_size is 96"));
  EXPECT_THAT(error([](ModelConfig& c) { c.intermediate_size = 32; }),
              HasSubstr("intermediate_size is 32"));
  EXPECT_THAT(error([](ModelConfig& c) { c.num_heads = 34; }), HasSubstr("34 query heads over 2"));
  EXPECT_THAT(error([](ModelConfig& c) { c.rope.dim = 32; }), HasSubstr("RoPE over 32 of 64"));
  EXPECT_THAT(error([](ModelConfig& c) { c.mlp_bias = true; }), HasSubstr("biases of gate"));
}

TEST(CudaImageBytes, ImagesForTheCpuStayWhatTheyWere) {
  // The digest covers names, packings, places and checksums. It changes only with the bytes of an
  // image, and then kPackingVersion must change too.
  ThreadPool threads(1);
  const ModelSource source = gguf_source(tiny_model_path("mixed"));
  const auto cpu = plan_image(source, {}, Hash128{}).value();
  EXPECT_EQ(cpu.tensors.size(), tensor_list(source.config).size());
  for (const PlannedTensor& tensor : cpu.tensors) {
    EXPECT_EQ(tensor.parts.size(), 1u) << tensor.name;
    EXPECT_NE(tensor.packing, ops::Packing::kTiledBF16) << tensor.name;
  }
}

TEST(PackTiles, PiecesAreTheWholeAndErrorsNameTheSize) {
  ThreadPool threads(2);
  std::vector<float> values(40 * 128);
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(i) * 0.37F - 900.0F;
  const std::span<const std::byte> bytes = std::as_bytes(std::span(values));
  const std::vector<ops::TilePart> parts = {{checkpoint::DType::kF32, bytes, 40}};
  std::vector<std::byte> whole(48 * 128 * 2);
  ASSERT_TRUE(ops::pack_tiles(parts, 128, 0, 40, whole, threads));
  std::vector<std::byte> pieces;
  for (const auto& [first, count] : {std::pair{0, 16}, std::pair{16, 24}}) {
    std::vector<std::byte> piece(static_cast<std::size_t>((count + 15) / 16 * 16) * 128 * 2);
    ASSERT_TRUE(ops::pack_tiles(parts, 128, first, count, piece, threads));
    pieces.insert(pieces.end(), piece.begin(), piece.end());
  }
  EXPECT_EQ(pieces, whole);

  const auto message = [&](std::int64_t cols, std::int64_t first, std::size_t out_bytes) {
    std::vector<std::byte> out(out_bytes);
    const auto packed = ops::pack_tiles(parts, cols, first, 40, out, threads);
    EXPECT_FALSE(packed);
    return packed ? std::string() : packed.error().message;
  };
  EXPECT_THAT(message(96, 0, whole.size()), HasSubstr("96 columns; a multiple of 64"));
  EXPECT_THAT(message(128, 8, whole.size()), HasSubstr("from a multiple of 16"));
  EXPECT_THAT(message(128, 0, 100), HasSubstr("the output is 100 bytes, needed are 12288"));
  values[5] = 3.4e38F;  // rounds up to infinity
  const auto packed = ops::pack_tiles(parts, 128, 0, 40, whole, threads);
  ASSERT_FALSE(packed);
  EXPECT_THAT(packed.error().message, HasSubstr("too large for BF16"));
}

}  // namespace
}  // namespace thaw::model
