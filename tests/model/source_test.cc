// What config.json and generation_config.json say, and what is refused.

#include "engine/model/source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/model/model_harness.h"

namespace thaw::model {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

/// A checkpoint without tensors: configurations are read before any is looked at.
class NoTensors final : public checkpoint::TensorSource {
 public:
  const std::string& path() const override { return path_; }
  const std::vector<checkpoint::StoredTensor>& tensors() const override { return none_; }
  const checkpoint::StoredTensor* find_tensor(std::string_view) const override { return nullptr; }
  Hash128 digest() const override { return {}; }

 private:
  std::string path_ = "/models/some";
  std::vector<checkpoint::StoredTensor> none_;
};

json base(const std::string& family = "Llama") {
  return {{"architectures", {family + "ForCausalLM"}},
          {"hidden_size", 64},
          {"intermediate_size", 128},
          {"num_hidden_layers", 6},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"max_position_embeddings", 4096},
          {"rms_norm_eps", 1e-6},
          {"vocab_size", 300},
          {"hidden_act", "silu"}};
}

json with(json config, const json& changes) {
  config.update(changes);
  return config;
}

Result<ModelSource> read(const json& config, const json& generation = nullptr) {
  return model_source_from_hf(std::make_shared<const NoTensors>(), config.dump(),
                              generation.is_null() ? "" : generation.dump());
}

ModelConfig config_of(const json& config) {
  return read(config).value().config;
}

Error error_of(const json& config, const json& generation = nullptr) {
  const auto source = read(config, generation);
  EXPECT_FALSE(source) << "it was read: " << config.dump();
  if (source) return {};
  EXPECT_THAT(source.error().message, HasSubstr("/models/some: "));
  return source.error();
}

TEST(Source, ReadsTheShape) {
  const ModelConfig config = config_of(base());
  EXPECT_EQ(config.family, "llama");
  EXPECT_EQ(config.num_layers, 6);
  EXPECT_EQ(config.layers.size(), 6U);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.max_positions, 4096);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_EQ(config.rope.dim, 16);
  EXPECT_TRUE(config.rope.half_split);
  EXPECT_FALSE(config.tied_embeddings);
  EXPECT_FALSE(config.qkv_bias);

  json old = base();
  old.erase("num_key_value_heads");
  old.erase("architectures");
  old["model_type"] = "llama";
  old["head_dim"] = nullptr;
  EXPECT_EQ(config_of(old).num_kv_heads, 4);
  EXPECT_EQ(config_of(old).head_dim, 16);
}

TEST(Source, FamiliesDifferInWhatTheyLeaveOut) {
  EXPECT_EQ(config_of(base("Qwen3")).head_dim, 128);
  EXPECT_TRUE(config_of(base("Qwen3")).qk_norm);
  EXPECT_TRUE(config_of(base("Qwen2")).qkv_bias);
  EXPECT_FALSE(config_of(base("Qwen2")).o_bias);
  EXPECT_TRUE(config_of(with(base("Qwen3"), {{"attention_bias", true}})).o_bias);
  const ModelConfig smollm3 = config_of(base("SmolLM3"));
  EXPECT_TRUE(smollm3.tied_embeddings);
  EXPECT_EQ(smollm3.rope.theta, 2000000.0);
  EXPECT_TRUE(smollm3.layers[2].rope);
  EXPECT_FALSE(smollm3.layers[3].rope);
  EXPECT_TRUE(smollm3.layers[4].rope);
  EXPECT_FALSE(
      config_of(with(base("SmolLM3"), {{"no_rope_layers", {0, 1, 1, 1, 1, 1}}})).layers[0].rope);
}

TEST(Source, WindowsAreWhereAConfigurationTurnsThemOn) {
  const auto windows = [](const json& config) {
    std::vector<int> found;
    for (const LayerConfig& layer : config_of(config).layers)
      found.push_back(layer.window);
    return found;
  };
  EXPECT_THAT(windows(base("Mistral")), ElementsAre(4096, 4096, 4096, 4096, 4096, 4096));
  EXPECT_THAT(windows(with(base("Mistral"), {{"sliding_window", nullptr}})),
              ElementsAre(0, 0, 0, 0, 0, 0));
  EXPECT_THAT(windows(with(base("Mistral"), {{"sliding_window", 9}})),
              ElementsAre(9, 9, 9, 9, 9, 9));
  EXPECT_THAT(windows(with(base(), {{"sliding_window", 9}})), ElementsAre(0, 0, 0, 0, 0, 0));
  const json qwen = with(base("Qwen2"), {{"sliding_window", 9}, {"max_window_layers", 4}});
  EXPECT_THAT(windows(qwen), ElementsAre(0, 0, 0, 0, 0, 0));
  const json sliding = with(qwen, {{"use_sliding_window", true}});
  EXPECT_THAT(windows(sliding), ElementsAre(0, 0, 0, 0, 9, 9));
  const json types = {"full_attention", "sliding_attention", "full_attention",
                      "full_attention", "full_attention",    "sliding_attention"};
  EXPECT_THAT(windows(with(sliding, {{"layer_types", types}})), ElementsAre(0, 9, 0, 0, 0, 9));
  EXPECT_THAT(error_of(with(qwen, {{"layer_types", types}})).message,
              HasSubstr("layer_types asks for sliding_attention"));
  EXPECT_THAT(error_of(with(sliding, {{"layer_types", {"full_attention"}}})).message,
              HasSubstr("layer_types has 1 entries for 6 layers"));
  const Error chunked = error_of(with(sliding, {{"layer_types", json(6, "chunked_attention")}}));
  EXPECT_EQ(chunked.code, Errc::kUnsupported);
  EXPECT_THAT(chunked.message, HasSubstr("'chunked_attention' is not supported"));
}

TEST(Source, RopeIsReadFromOldAndNewKeys) {
  const json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 1024}};
  const RopeConfig older =
      config_of(with(base(), {{"rope_theta", 500000.0}, {"rope_scaling", llama3}})).rope;
  const RopeConfig newer =
      config_of(with(base(), {{"rope_parameters", with(llama3, {{"rope_theta", 500000.0}})}})).rope;
  for (const RopeConfig& rope : {older, newer}) {
    EXPECT_EQ(rope.scaling, RopeScaling::kLlama3);
    EXPECT_EQ(rope.theta, 500000.0);
    EXPECT_EQ(rope.factor, 8.0);
    EXPECT_EQ(rope.original_positions, 1024);
    EXPECT_EQ(rope.high_freq_factor, 4.0);
  }
  const json linear = {{"rope_scaling", {{"type", "linear"}, {"factor", 2}}}};
  EXPECT_EQ(config_of(with(base(), linear)).rope.scaling, RopeScaling::kLinear);
  EXPECT_EQ(config_of(with(base(), linear)).rope.factor, 2.0);
  EXPECT_EQ(config_of(with(base(), {{"rope_scaling", nullptr}})).rope.scaling, RopeScaling::kNone);
}

TEST(Source, YarnStretchesTheContext) {
  const json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}};
  const ModelConfig config = config_of(with(base("Qwen2"), {{"rope_scaling", yarn}}));
  EXPECT_EQ(config.rope.scaling, RopeScaling::kYarn);
  EXPECT_EQ(config.rope.original_positions, 4096);
  EXPECT_EQ(config.max_positions, 16384);
  EXPECT_NEAR(config.rope.magnitude, 0.1 * std::log(4.0) + 1.0, 1e-12);
  EXPECT_EQ(config.rope.beta_fast, 32.0);
  EXPECT_EQ(config.rope.beta_slow, 1.0);
  EXPECT_TRUE(config.rope.truncate);
  const json given = with(
      yarn,
      {{"original_max_position_embeddings", 1024}, {"attention_factor", 0.5}, {"truncate", false}});
  const ModelConfig other = config_of(with(base(), {{"rope_scaling", given}}));
  EXPECT_EQ(other.max_positions, 4096);
  EXPECT_EQ(other.rope.magnitude, 0.5);
  EXPECT_FALSE(other.rope.truncate);
}

TEST(Source, NamesWhatIsNotSupported) {
  const auto unsupported = [](const json& changes, const std::string& what) {
    const Error error = error_of(with(base(), changes));
    EXPECT_EQ(error.code, Errc::kUnsupported);
    EXPECT_THAT(error.message, HasSubstr(what));
  };
  unsupported({{"architectures", {"GemmaForCausalLM"}}},
              "architecture 'GemmaForCausalLM' is not supported; supported are LlamaForCausalLM, "
              "MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM and SmolLM3ForCausalLM");
  unsupported({{"hidden_act", "gelu"}}, "hidden_act 'gelu' is not supported; supported is silu");
  unsupported({{"quantization_config", {{"quant_method", "gptq"}}}}, "'gptq' is not supported");
  unsupported({{"rope_scaling", {{"type", "dynamic"}, {"factor", 2.0}}}},
              "RoPE scaling 'dynamic' is not supported: its angles depend on the length");
  unsupported({{"rope_scaling", {{"rope_type", "longrope"}}}}, "'longrope' is not supported");
  unsupported({{"rope_parameters", {{"rope_type", "spiral"}}}},
              "RoPE scaling 'spiral' is not supported; supported are default, linear, llama3");
  unsupported({{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}},
              "rope_parameters by kind of layer");
  unsupported({{"partial_rotary_factor", 0.5}}, "partial_rotary_factor is not supported");
  unsupported({{"num_local_experts", 8}}, "mixture of experts (num_local_experts)");
  unsupported({{"final_logit_softcapping", 30.0}}, "final_logit_softcapping is not supported");
  unsupported({{"num_attention_heads", 8}, {"num_key_value_heads", 3}},
              "8 heads are no multiple of 3 KV heads");
}

TEST(Source, NamesWhatIsWrong) {
  const auto wrong = [](const json& config, const std::string& what) {
    const Error error = error_of(config);
    EXPECT_EQ(error.code, Errc::kDataLoss);
    EXPECT_THAT(error.message, HasSubstr(what));
  };
  json lacking = base();
  lacking.erase("hidden_size");
  wrong(lacking, "config.json: hidden_size is missing");
  wrong(with(base(), {{"hidden_size", "64"}}), "hidden_size is \"64\"; an integer is right");
  wrong(with(base(), {{"num_hidden_layers", 0}}), "num_hidden_layers is 0; 1 to 1024 is right");
  wrong(with(base(), {{"num_hidden_layers", 1 << 30}}), "num_hidden_layers is 1073741824");
  wrong(with(base(), {{"rms_norm_eps", -1.0}}), "rms_norm_eps is -1.0");
  wrong(with(base(), {{"rms_norm_eps", 1e300}}), "a positive number is right");
  const json negative = {{"rope_type", "yarn"}, {"factor", 2.0}, {"attention_factor", -1.0}};
  wrong(with(base(), {{"rope_scaling", negative}}), "attention_factor is -1.0");
  wrong(with(base(), {{"tie_word_embeddings", 1}}), "true or false is right");
  wrong(with(base(), {{"eos_token_id", "x"}}), "eos_token_id is \"x\"");
  wrong(with(base(), {{"eos_token_id", -1}}), "a token id is right");
  wrong(with(base(), {{"rope_scaling", {{"rope_type", "llama3"}, {"factor", 8.0}}}}),
        "RoPE parameters: low_freq_factor is missing");
  wrong(with(base(), {{"rope_scaling", 3}}), "rope_scaling is 3; an object is right");
  wrong(with(base("SmolLM3"), {{"no_rope_layers", {1, 0}}}), "no_rope_layers has 2 entries");
  const auto no_json =
      model_source_from_hf(std::make_shared<const NoTensors>(), "{\"hidden_size\": ", "");
  EXPECT_THAT(no_json.error().message, HasSubstr("config.json: this is no JSON object"));
  EXPECT_THAT(error_of(base(), json::array()).message, HasSubstr("generation_config.json: this"));
}

// Whatever stands behind a key: a configuration that holds together, or an error that names it.
TEST(Source, AnyValueOfAnyKeyIsReadOrRefused) {
  const json values = {nullptr,
                       true,
                       -1,
                       0,
                       1,
                       3,
                       1 << 30,
                       1e300,
                       -0.5,
                       "",
                       "silu",
                       json::array(),
                       json::object(),
                       {1, 2},
                       {"full_attention"},
                       {{"rope_type", "yarn"}}};
  const std::vector<std::string> more = {"head_dim",
                                         "rope_theta",
                                         "rope_parameters",
                                         "rope_scaling",
                                         "sliding_window",
                                         "use_sliding_window",
                                         "layer_types",
                                         "max_window_layers",
                                         "no_rope_layers",
                                         "eos_token_id",
                                         "no_rope_layer_interval",
                                         "attention_bias",
                                         "model_type",
                                         "tie_word_embeddings",
                                         "quantization_config"};
  const json shape = base();
  int read_well = 0;
  int refused = 0;
  for (const char* family : {"Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3"}) {
    std::vector<std::string> keys = more;
    for (const auto& entry : shape.items())
      keys.push_back(entry.key());
    for (const std::string& key : keys) {
      for (const json& value : values) {
        const auto source = read(with(base(family), {{key, value}}));
        if (!source) {
          ++refused;
          EXPECT_THAT(source.error().message, HasSubstr("config.json: "));
          continue;
        }
        ++read_well;
        const ModelConfig& config = source->config;
        ASSERT_EQ(config.layers.size(), static_cast<std::size_t>(config.num_layers));
        ASSERT_EQ(config.num_heads % config.num_kv_heads, 0);
        ASSERT_EQ(config.rope.dim % 2, 0);
        ASSERT_GT(config.head_dim, 0);
        ASSERT_EQ(ModelConfig::from_json(config.to_json()).value().to_json(), config.to_json());
      }
    }
  }
  EXPECT_GT(read_well, 300);
  EXPECT_GT(refused, 300);
}

TEST(Source, CarriesGenerationDefaults) {
  const json generation = {{"do_sample", true},
                           {"temperature", 0.6},
                           {"top_p", 0.9},
                           {"top_k", 20},
                           {"min_p", 0},
                           {"repetition_penalty", 1.05},
                           {"eos_token_id", {9, 2, 7, 9, 300}}};
  const auto source = read(with(base(), {{"eos_token_id", 2}}), generation).value();
  EXPECT_THAT(source.config.eos_token_ids, ElementsAre(2, 7, 9));
  EXPECT_EQ(source.generation.do_sample, true);
  EXPECT_EQ(source.generation.temperature, 0.6F);
  EXPECT_EQ(source.generation.top_p, 0.9F);
  EXPECT_EQ(source.generation.top_k, 20);
  EXPECT_EQ(source.generation.min_p, 0.0F);
  EXPECT_EQ(source.generation.repetition_penalty, 1.05F);

  const auto silent = read(with(base(), {{"eos_token_id", {5, 3}}}), json::object()).value();
  EXPECT_THAT(silent.config.eos_token_ids, ElementsAre(3, 5));
  EXPECT_FALSE(silent.generation.do_sample);
  EXPECT_FALSE(silent.generation.temperature);
  const auto absurd = read(base(), {{"temperature", -1}, {"top_p", 7}, {"top_k", 1e30}}).value();
  EXPECT_FALSE(absurd.generation.temperature);
  EXPECT_FALSE(absurd.generation.top_p);
  EXPECT_FALSE(absurd.generation.top_k);
}

TEST(Source, ReadsTheFixturesDefaults) {
  const ModelSource source = hf_source(family_path("llama3"));
  EXPECT_THAT(source.config.eos_token_ids, ElementsAre(2, 7, 9));
  EXPECT_EQ(source.generation.top_k, 20);
  EXPECT_EQ(source.naming, TensorNaming::kHuggingFace);
}

}  // namespace
}  // namespace thaw::model
