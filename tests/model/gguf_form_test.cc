// The same weights as a GGUF file and as a Hugging Face directory are the same model: the fixtures
// of the families, written with GGUF's names, its keys and its order of rotated pairs.

#include <map>
#include <variant>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/model/rope_frequencies.h"
#include "engine/model/tensor_list.h"
#include "tests/checkpoint/gguf_builder.h"
#include "tests/model/model_harness.h"

namespace thaw::model {
namespace {

using Value = std::variant<std::uint32_t, float, std::string>;
using Metadata = std::map<std::string, Value>;

std::uint32_t gguf_type(checkpoint::DType dtype) {
  return dtype == checkpoint::DType::kF32 ? 0 : dtype == checkpoint::DType::kF16 ? 1 : 30;
}

/// The tensor's bytes; rows of Q and K so that rotated pairs lie side by side where the file has
/// them so.
std::string stored_bytes(const ModelSource& source, const TensorRule& rule, bool interleave) {
  const checkpoint::StoredTensor& tensor = *source.tensors->find_tensor(rule.hf_name);
  std::string bytes(reinterpret_cast<const char*>(tensor.data.data()), tensor.data.size());
  const bool rotated = rule.hf_name.find("q_proj") != std::string::npos ||
                       rule.hf_name.find("k_proj") != std::string::npos;
  if (!interleave || !rotated) return bytes;
  const auto dim = static_cast<std::size_t>(source.config.head_dim);
  const auto outputs = static_cast<std::size_t>(rule.is_matrix ? rule.rows : rule.cols);
  const std::size_t row_bytes = bytes.size() / outputs;
  std::string permuted;
  for (std::size_t row = 0; row < outputs; ++row) {
    const std::size_t i = row % dim;
    const std::size_t from = row - i + i / 2 + (i % 2 == 0 ? 0 : dim / 2);
    permuted += bytes.substr(from * row_bytes, row_bytes);
  }
  return permuted;
}

std::string gguf_of(const ModelSource& source, const std::string& architecture,
                    const Metadata& more, std::span<const float> rope_factors = {}) {
  const ModelConfig& config = source.config;
  const std::string prefix = architecture + ".";
  const auto count = [](int value) { return static_cast<std::uint32_t>(value); };
  Metadata metadata = {{"general.architecture", architecture},
                       {prefix + "block_count", count(config.num_layers)},
                       {prefix + "embedding_length", count(config.hidden_size)},
                       {prefix + "feed_forward_length", count(config.intermediate_size)},
                       {prefix + "context_length", count(config.max_positions)},
                       {prefix + "attention.head_count", count(config.num_heads)},
                       {prefix + "attention.head_count_kv", count(config.num_kv_heads)},
                       {prefix + "attention.key_length", count(config.head_dim)},
                       {prefix + "attention.value_length", count(config.head_dim)},
                       {prefix + "attention.layer_norm_rms_epsilon", config.rms_norm_eps},
                       {prefix + "rope.freq_base", static_cast<float>(config.rope.theta)}};
  for (const auto& [key, value] : more)
    metadata[prefix + key] = value;

  struct Stored {
    std::string name;
    std::vector<std::uint64_t> shape;
    std::uint32_t type;
    std::string bytes;
  };
  const bool interleave = architecture == "llama" || architecture == "smollm3";
  std::vector<Stored> tensors;
  for (const TensorRule& rule : tensor_list(config)) {
    std::vector<std::uint64_t> shape = {static_cast<std::uint64_t>(rule.cols)};
    if (rule.is_matrix) shape.push_back(static_cast<std::uint64_t>(rule.rows));
    tensors.push_back({rule.gguf_name, shape,
                       gguf_type(source.tensors->find_tensor(rule.hf_name)->dtype),
                       stored_bytes(source, rule, interleave)});
  }
  if (!rope_factors.empty()) {
    tensors.push_back({"rope_freqs.weight",
                       {rope_factors.size()},
                       0,
                       std::string(reinterpret_cast<const char*>(rope_factors.data()),
                                   rope_factors.size_bytes())});
  }

  checkpoint::GgufBuilder file;
  file.header(tensors.size(), metadata.size());
  for (const auto& [key, value] : metadata) {
    file.text(key);
    if (const auto* text = std::get_if<std::string>(&value)) {
      file.put<std::uint32_t>(8).text(*text);
    } else if (const auto* number = std::get_if<float>(&value)) {
      file.put<std::uint32_t>(6).put(*number);
    } else {
      file.put<std::uint32_t>(4).put(std::get<std::uint32_t>(value));
    }
  }
  std::uint64_t offset = 0;
  for (const Stored& tensor : tensors) {
    file.tensor(tensor.name, tensor.shape, tensor.type, offset);
    offset += (tensor.bytes.size() + 31) / 32 * 32;
  }
  for (const Stored& tensor : tensors)
    file.data(tensor.bytes);
  file.data(std::string_view());
  return file.bytes();
}

class GgufForm : public testing::Test {
 protected:
  static std::vector<std::vector<float>> logits(const ModelSource& source,
                                                const HarnessOptions& options) {
    Harness harness(source, options);
    return all_logits(harness, random_tokens(350, harness.config().vocab_size, 5), 0);
  }

  /// Loads the file and compares: the same bits where the order of every sum is the same, within
  /// rounding where GGUF's order of pairs adds up the scores of attention in another order.
  static void expect_same_model(const ModelSource& hf, const std::string& bytes, bool same_order) {
    const checkpoint::ScratchFile file(bytes);
    const ModelSource gguf = gguf_source(file.path());
    EXPECT_EQ(gguf.config.max_positions, hf.config.max_positions);
    EXPECT_EQ(gguf.config.tied_embeddings, hf.config.tied_embeddings);
    const auto expected = logits(hf, kExact);
    const auto actual = logits(gguf, kExact);
    double largest = 0;
    for (std::size_t row = 0; row < expected.size(); ++row) {
      for (std::size_t i = 0; i < expected[row].size(); ++i)
        largest = std::max<double>(largest, std::abs(expected[row][i] - actual[row][i]));
    }
    EXPECT_LT(largest, 1e-4);
    if (!same_order) return;
    EXPECT_EQ(largest, 0.0);
    const auto native = logits(hf, {});
    const auto native_gguf = logits(gguf, {});
    for (std::size_t row = 0; row < native.size(); ++row)
      ASSERT_TRUE(same_bits(native[row], native_gguf[row])) << row;
  }
};

TEST_F(GgufForm, Qwen2) {
  const ModelSource hf = hf_source(family_path("qwen2"));
  expect_same_model(hf, gguf_of(hf, "qwen2", {}), true);
}

TEST_F(GgufForm, Qwen3) {
  const ModelSource hf = hf_source(family_path("qwen3"));
  expect_same_model(hf, gguf_of(hf, "qwen3", {}), true);
}

// No key tells which layers have no RoPE: every fourth has none.
TEST_F(GgufForm, SmolLm3) {
  ModelSource hf = hf_source(family_path("smollm3"));
  hf.config.layers.assign(4, {});
  hf.config.layers[3].rope = false;
  expect_same_model(hf, gguf_of(hf, "smollm3", {}), false);
}

TEST_F(GgufForm, Llama2) {
  const ModelSource hf = hf_source(family_path("llama2"));
  expect_same_model(hf, gguf_of(hf, "llama", {}), false);
}

TEST_F(GgufForm, MistralIsALlamaWithAWindow) {
  const ModelSource hf = hf_source(family_path("mistral"));
  expect_same_model(hf, gguf_of(hf, "llama", {{"attention.sliding_window", 100U}}), false);
}

TEST_F(GgufForm, BiasesAndLinearScaling) {
  const ModelSource hf = hf_source(family_path("llama-linear"));
  ASSERT_TRUE(hf.config.mlp_bias && hf.config.o_bias && hf.config.qkv_bias);
  expect_same_model(
      hf, gguf_of(hf, "llama", {{"rope.scaling.type", "linear"}, {"rope.scaling.factor", 4.0F}}),
      false);
}

TEST_F(GgufForm, Yarn) {
  const ModelSource hf = hf_source(family_path("llama-yarn"));
  expect_same_model(hf,
                    gguf_of(hf, "llama",
                            {{"rope.scaling.type", "yarn"},
                             {"rope.scaling.factor", 4.0F},
                             {"rope.scaling.original_context_length", 128U}}),
                    false);
}

// Llama 3's scaling is stored as one factor for each pair.
TEST_F(GgufForm, FrequencyFactors) {
  const ModelSource hf = hf_source(family_path("llama3"));
  RopeConfig trained = hf.config.rope;
  trained.scaling = RopeScaling::kNone;
  const auto scaled = rope_frequencies(hf.config.rope, {});
  const auto plain = rope_frequencies(trained, {});
  std::vector<float> factors(plain.size());
  for (std::size_t i = 0; i < plain.size(); ++i)
    factors[i] = static_cast<float>(plain[i] / scaled[i]);
  expect_same_model(hf, gguf_of(hf, "llama", {}, factors), false);
}

TEST_F(GgufForm, NamesWhatIsNotSupported) {
  const ModelSource hf = hf_source(family_path("qwen2"));
  const auto error = [&hf](const Metadata& more) {
    const checkpoint::ScratchFile file(gguf_of(hf, "qwen2", more));
    const auto source = model_source_from_gguf(std::make_shared<const checkpoint::GgufFile>(
        checkpoint::GgufFile::open(file.path()).value()));
    EXPECT_FALSE(source);
    return source ? std::string() : source.error().message;
  };
  EXPECT_THAT(error({{"expert_count", 4U}}),
              testing::HasSubstr("mixture of experts (qwen2.expert_count)"));
  EXPECT_THAT(error({{"rope.scaling.type", "longrope"}}),
              testing::HasSubstr("RoPE scaling 'longrope' is not supported: its angles depend"));
  EXPECT_THAT(error({{"rope.scaling.type", "yarn"}}),
              testing::HasSubstr("qwen2.rope.scaling.factor is 0"));
  EXPECT_THAT(error({{"attention.sliding_window_pattern", 2U}}),
              testing::HasSubstr("sliding_window_pattern is not supported"));
  EXPECT_THAT(error({{"final_logit_softcapping", 30.0F}}),
              testing::HasSubstr("final_logit_softcapping is not supported"));
  EXPECT_THAT(error({{"attention.value_length", 8U}}), testing::HasSubstr("value_length differs"));
}

}  // namespace
}  // namespace thaw::model
