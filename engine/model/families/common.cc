#include <algorithm>

#include "engine/model/families/family.h"
#include "engine/model/families/rope.h"

namespace thaw::model {
namespace {

constexpr std::int64_t kMaxExtent = 1 << 24;  ///< of any dimension; keeps products inside 64 bits
constexpr std::int64_t kMaxLayers = 1024;
constexpr std::int64_t kMaxHeadDim = 1024;

std::string uneven_heads(const ModelConfig& config) {
  return std::to_string(config.num_heads) + " heads are no multiple of " +
         std::to_string(config.num_kv_heads) + " KV heads";
}

/// What transformers would compute otherwise than the decoder does.
void refuse_hf_features(JsonKeys& keys) {
  const std::string activation = keys.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    keys.fail(Errc::kUnsupported,
              "hidden_act '" + activation + "' is not supported; supported is silu");
  }
  if (const auto quantization = keys.object("quantization_config")) {
    const std::string method = JsonKeys(*quantization, "").text("quant_method", "unnamed");
    keys.fail(Errc::kUnsupported,
              "quantization_config '" + method +
                  "' is not supported; float tensors (F32, F16, BF16) are, and GGUF files");
  }
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    if (keys.has(key))
      keys.fail(Errc::kUnsupported, std::string(key) + " is not supported; plain logits are");
  }
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts"}) {
    if (keys.number(key).value_or(0) > 0) {
      keys.fail(Errc::kUnsupported,
                std::string("mixture of experts (") + key + ") is not supported; dense models are");
    }
  }
}

}  // namespace

void read_gguf_decoder(GgufKeys& keys, ModelConfig& config) {
  if (keys.find_int("expert_count").value_or(0) > 0) {
    keys.fail(Errc::kUnsupported, "mixture of experts (" + keys.full("expert_count") +
                                      ") is not supported; dense models are");
  }
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    if (keys.find_real(key)) {
      keys.fail(Errc::kUnsupported, keys.full(key) + " is not supported; plain logits are");
    }
  }
  config.num_layers = keys.required("block_count", kMaxLayers);
  config.hidden_size = keys.required("embedding_length", kMaxExtent);
  config.intermediate_size = keys.required("feed_forward_length", kMaxExtent);
  config.max_positions = keys.required("context_length", kMaxExtent);
  config.num_heads = keys.required("attention.head_count", config.hidden_size);
  config.num_kv_heads =
      keys.optional("attention.head_count_kv", config.num_heads, config.num_heads);
  config.head_dim = keys.optional("attention.key_length",
                                  std::max(1, config.hidden_size / config.num_heads), kMaxHeadDim);
  if (keys.find_int("attention.value_length").value_or(config.head_dim) != config.head_dim) {
    keys.fail(Errc::kUnsupported,
              keys.full("attention.value_length") + " differs from the length of keys");
  }
  config.rms_norm_eps = static_cast<float>(keys.real("attention.layer_norm_rms_epsilon", 1e-5));
  config.layers.assign(static_cast<std::size_t>(config.num_layers), {});
  read_gguf_rope(keys, config);
  if (keys.file().has(keys.full("attention.sliding_window_pattern"))) {
    keys.fail(Errc::kUnsupported, keys.full("attention.sliding_window_pattern") +
                                      " is not supported; one window for all layers is");
  }
  if (keys.find_int("attention.sliding_window").value_or(0) > 0)
    set_window(config, keys.required("attention.sliding_window", kMaxExtent));
  if (config.num_heads % config.num_kv_heads != 0)
    keys.fail(Errc::kUnsupported, uneven_heads(config));

  const checkpoint::StoredTensor* embedding = keys.tensors().find_tensor("token_embd.weight");
  if (embedding == nullptr) {
    keys.fail(Errc::kDataLoss, "tensor token_embd.weight is missing");
  } else if (embedding->rows() > kMaxExtent) {
    keys.fail(Errc::kDataLoss, "tensor token_embd.weight has too many rows");
  } else {
    config.vocab_size = static_cast<int>(embedding->rows());
  }
  config.tied_embeddings = !keys.has_tensor("output.weight");
  config.qkv_bias = keys.has_tensor("blk.0.attn_q.bias");
  config.o_bias = keys.has_tensor("blk.0.attn_output.bias");
  config.mlp_bias = keys.has_tensor("blk.0.ffn_gate.bias");
}

void read_hf_decoder(JsonKeys& keys, ModelConfig& config, double default_theta) {
  refuse_hf_features(keys);
  config.num_layers = keys.integer("num_hidden_layers", kMaxLayers);
  config.hidden_size = keys.integer("hidden_size", kMaxExtent);
  config.intermediate_size = keys.integer("intermediate_size", kMaxExtent);
  config.max_positions = keys.integer("max_position_embeddings", kMaxExtent);
  config.num_heads = keys.integer("num_attention_heads", config.hidden_size);
  config.num_kv_heads = keys.integer("num_key_value_heads", config.num_heads, config.num_heads);
  config.head_dim =
      keys.integer("head_dim", kMaxHeadDim, std::max(1, config.hidden_size / config.num_heads));
  config.vocab_size = keys.integer("vocab_size", kMaxExtent);
  config.rms_norm_eps = static_cast<float>(keys.real("rms_norm_eps", 1e-6));
  config.layers.assign(static_cast<std::size_t>(config.num_layers), {});
  read_hf_rope(keys, config, default_theta);
  if (config.num_heads % config.num_kv_heads != 0)
    keys.fail(Errc::kUnsupported, uneven_heads(config));
}

void read_hf_head(JsonKeys& keys, ModelConfig& config, bool default_tied) {
  config.tied_embeddings = keys.flag("tie_word_embeddings", default_tied);
}

void set_window(ModelConfig& config, int window) {
  for (LayerConfig& layer : config.layers)
    layer.window = window;
}

void read_hf_windows(JsonKeys& keys, ModelConfig& config, const std::vector<bool>& slides) {
  int window = 0;
  if (keys.flag("use_sliding_window", false) && keys.has("sliding_window"))
    window = keys.integer("sliding_window", kMaxExtent);
  const auto types = keys.texts("layer_types");
  if (types && types->size() < config.layers.size()) {
    keys.fail(Errc::kDataLoss, "layer_types has " + std::to_string(types->size()) +
                                   " entries for " + std::to_string(config.num_layers) + " layers");
    return;
  }
  for (std::size_t i = 0; i < config.layers.size(); ++i) {
    const bool sliding = types ? (*types)[i] == "sliding_attention" : window > 0 && slides[i];
    if (types && !sliding && (*types)[i] != "full_attention") {
      keys.fail(Errc::kUnsupported,
                "layer type '" + (*types)[i].substr(0, 64) +
                    "' is not supported; supported are full_attention and sliding_attention");
      return;
    }
    if (sliding && window == 0) {
      keys.fail(Errc::kDataLoss,
                "layer_types asks for sliding_attention, but sliding_window is not in use");
      return;
    }
    if (sliding) config.layers[i].window = window;
  }
}

std::vector<bool> qwen_sliding_layers(JsonKeys& keys, const ModelConfig& config) {
  const double first = keys.number("max_window_layers").value_or(28);
  std::vector<bool> slides(static_cast<std::size_t>(config.num_layers));
  for (int i = 0; i < config.num_layers; ++i)
    slides[static_cast<std::size_t>(i)] = i >= first;
  return slides;
}

}  // namespace thaw::model
