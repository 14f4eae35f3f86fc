#include "engine/model/families/family.h"

namespace thaw::model {
namespace {

constexpr int kDefaultWindow = 4096;  ///< where config.json does not mention sliding_window

void read_hf_mistral(JsonKeys& keys, ModelConfig& config) {
  read_hf_decoder(keys, config);
  read_hf_head(keys, config, /*default_tied=*/false);
  if (keys.has("sliding_window")) {
    set_window(config, keys.integer("sliding_window", 1 << 24));
  } else if (!keys.mentions("sliding_window")) {
    set_window(config, kDefaultWindow);
  }
}

}  // namespace

// Mistral: Llama with a window on every layer in the first models, none later (sliding_window:
// null). Its GGUF files say "llama". Source: Jiang et al., arXiv:2310.06825.
const Family kMistral = {"mistral", nullptr, "MistralForCausalLM", nullptr, read_hf_mistral};

}  // namespace thaw::model
