#pragma once

#include <array>
#include <vector>

#include "engine/model/config.h"
#include "engine/model/gguf_keys.h"
#include "engine/model/json_keys.h"

namespace thaw::model {

/// A family of decoder-only models: how a checkpoint says what it is. Both readers fill the whole
/// configuration, features included; errors stick to the keys. docs/families.md tells how to add
/// one.
struct Family {
  const char* name;
  const char* gguf_architecture;  ///< general.architecture; null: no GGUF of its own
  const char* hf_architecture;  ///< in config.json's architectures
  void (*read_gguf)(GgufKeys& keys, ModelConfig& config);
  void (*read_hf)(JsonKeys& keys, ModelConfig& config);
};

extern const Family kLlama;
extern const Family kMistral;
extern const Family kQwen2;
extern const Family kQwen3;
extern const Family kSmolLm3;

/// Every family there is.
inline constexpr std::array<const Family*, 5> kFamilies = {&kLlama, &kMistral, &kQwen2, &kQwen3,
                                                           &kSmolLm3};

// What the families share.

/// Sizes, heads, norms, window and RoPE of a GGUF file; biases and a head of its own where the file
/// has such tensors. Every layer has RoPE.
void read_gguf_decoder(GgufKeys& keys, ModelConfig& config);
/// The same of config.json, without windows and biases; `default_theta` is the family's rope_theta.
void read_hf_decoder(JsonKeys& keys, ModelConfig& config, double default_theta = 10000.0);
/// config.json's tie_word_embeddings.
void read_hf_head(JsonKeys& keys, ModelConfig& config, bool default_tied);

/// Gives every layer a window of `window` keys.
void set_window(ModelConfig& config, int window);
/// Windows as Qwen2, Qwen3 and SmolLM3 name them: use_sliding_window, sliding_window and
/// layer_types; where the last is absent, the layers in `slides` have one.
void read_hf_windows(JsonKeys& keys, ModelConfig& config, const std::vector<bool>& slides);
/// `slides` of Qwen2 and Qwen3: the layers from max_window_layers on.
std::vector<bool> qwen_sliding_layers(JsonKeys& keys, const ModelConfig& config);

}  // namespace thaw::model
