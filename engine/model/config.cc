#include "engine/model/config.h"

#include <cmath>
#include <limits>

#include <nlohmann/json.hpp>

#include "engine/checkpoint/end_tokens.h"
#include "engine/model/load.h"

namespace thaw::model {
namespace {

constexpr std::int64_t kMaxExtent = 1 << 24;  ///< of any dimension; keeps products inside 64 bits
constexpr std::int64_t kMaxLayers = 1024;

Error unsupported(const checkpoint::GgufFile& file, const std::string& what) {
  return make_error(Errc::kUnsupported, file.path() + ": " + what);
}

/// Reads the keys of one architecture; the first one that is missing or out of range sticks.
class KeyReader {
 public:
  explicit KeyReader(const checkpoint::GgufFile& file) : file_(file) {}

  int required(const std::string& key, std::int64_t limit) {
    const auto value = file_.get_int(key);
    if (!value) fail(key + " is missing or not an integer");
    return checked(key, value.value_or(1), limit);
  }
  int optional(const std::string& key, int fallback, std::int64_t limit) {
    return checked(key, file_.get_int(key).value_or(fallback), limit);
  }
  double real(const std::string& key, double fallback) {
    const double value = file_.get_float(key).value_or(fallback);
    if (!(value > 0.0) || !std::isfinite(value))
      fail(key + " is " + std::to_string(value) + "; a positive number is right");
    return value;
  }
  void fail(const std::string& what) {
    if (!error_) error_ = make_error(Errc::kDataLoss, file_.path() + ": " + what);
  }
  const std::optional<Error>& error() const { return error_; }

 private:
  int checked(const std::string& key, std::int64_t value, std::int64_t limit) {
    if (value < 1 || value > limit) {
      fail(key + " is " + std::to_string(value) + "; 1 to " + std::to_string(limit) + " is right");
      return 1;
    }
    return static_cast<int>(value);
  }

  const checkpoint::GgufFile& file_;
  std::optional<Error> error_;
};

/// What the file asks for beyond plain Llama, or nothing. Serving such a file as if it did not ask
/// would give wrong text.
std::optional<std::string> unsupported_feature(const checkpoint::GgufFile& file) {
  const auto scaling = file.get_string("llama.rope.scaling.type");
  const double factor = file.get_float("llama.rope.scaling.factor")
                            .value_or(file.get_float("llama.rope.scale_linear").value_or(1.0));
  if (scaling && *scaling != "none" && !(*scaling == "linear" && factor == 1.0)) {
    return "RoPE scaling '" + std::string(scaling->substr(0, 32)) +
           "' is not supported; supported are none and the frequency factors of Llama 3 "
           "(rope_freqs.weight)";
  }
  if (!scaling && factor != 1.0 && factor != 0.0) {
    return "RoPE scaling 'linear' is not supported; supported are none and the frequency factors "
           "of Llama 3 (rope_freqs.weight)";
  }
  if (file.get_int("llama.expert_count").value_or(0) > 0)
    return "mixture of experts (llama.expert_count) is not supported; dense Llama models are";
  const auto window = file.get_int("llama.attention.sliding_window").value_or(0);
  if (window > 0 && window < file.get_int("llama.context_length").value_or(0))
    return "sliding-window attention is not supported; full attention is";
  return std::nullopt;
}

}  // namespace

Result<ModelConfig> config_from_gguf(const checkpoint::GgufFile& file) {
  const auto architecture = file.get_string("general.architecture");
  if (!architecture)
    return unsupported(file, "general.architecture is missing; supported is llama");
  if (*architecture != "llama") {
    return unsupported(file, "architecture '" + std::string(architecture->substr(0, 64)) +
                                 "' is not supported; supported is llama");
  }
  if (const auto feature = unsupported_feature(file)) return unsupported(file, *feature);

  ModelConfig config;
  KeyReader keys(file);
  config.family = "llama";
  config.num_layers = keys.required("llama.block_count", kMaxLayers);
  config.hidden_size = keys.required("llama.embedding_length", kMaxExtent);
  config.intermediate_size = keys.required("llama.feed_forward_length", kMaxExtent);
  config.max_positions = keys.required("llama.context_length", kMaxExtent);
  config.num_heads = keys.required("llama.attention.head_count", config.hidden_size);
  config.num_kv_heads =
      keys.optional("llama.attention.head_count_kv", config.num_heads, config.num_heads);
  config.head_dim = keys.optional("llama.attention.key_length",
                                  std::max(1, config.hidden_size / config.num_heads), 1024);
  config.rotary_dim = keys.optional("llama.rope.dimension_count", config.head_dim, config.head_dim);
  config.rms_norm_eps =
      static_cast<float>(keys.real("llama.attention.layer_norm_rms_epsilon", 1e-5));
  config.rope_theta = keys.real("llama.rope.freq_base", 10000.0);
  const checkpoint::StoredTensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr) keys.fail("tensor token_embd.weight is missing");
  if (embedding != nullptr && embedding->rows() > kMaxExtent)
    keys.fail("tensor token_embd.weight has too many rows");
  if (const auto& error = keys.error()) return *error;

  config.vocab_size = static_cast<int>(embedding->rows());
  config.tied_embeddings = file.find_tensor("output.weight") == nullptr;
  config.eos_token_ids = checkpoint::end_tokens(file);
  if (config.num_heads % config.num_kv_heads != 0) {
    return unsupported(file, std::to_string(config.num_heads) + " heads are no multiple of " +
                                 std::to_string(config.num_kv_heads) + " KV heads");
  }
  if (config.rotary_dim % 2 != 0)
    return unsupported(file, "llama.rope.dimension_count is odd; an even number is right");
  const auto value_length = file.get_int("llama.attention.value_length");
  if (value_length && *value_length != config.head_dim)
    return unsupported(file, "llama.attention.value_length differs from the length of keys");
  return config;
}

std::string ModelConfig::to_json() const {
  return nlohmann::json{{"family", family},
                        {"num_layers", num_layers},
                        {"hidden_size", hidden_size},
                        {"intermediate_size", intermediate_size},
                        {"num_heads", num_heads},
                        {"num_kv_heads", num_kv_heads},
                        {"head_dim", head_dim},
                        {"vocab_size", vocab_size},
                        {"max_positions", max_positions},
                        {"rms_norm_eps", rms_norm_eps},
                        {"rope_theta", rope_theta},
                        {"rotary_dim", rotary_dim},
                        {"rope_half_split", rope_half_split},
                        {"tied_embeddings", tied_embeddings},
                        {"eos_token_ids", eos_token_ids}}
      .dump();
}

Result<ModelConfig> ModelConfig::from_json(const std::string& text) {
  try {
    const nlohmann::json json = nlohmann::json::parse(text);
    ModelConfig config;
    json.at("family").get_to(config.family);
    json.at("num_layers").get_to(config.num_layers);
    json.at("hidden_size").get_to(config.hidden_size);
    json.at("intermediate_size").get_to(config.intermediate_size);
    json.at("num_heads").get_to(config.num_heads);
    json.at("num_kv_heads").get_to(config.num_kv_heads);
    json.at("head_dim").get_to(config.head_dim);
    json.at("vocab_size").get_to(config.vocab_size);
    json.at("max_positions").get_to(config.max_positions);
    json.at("rms_norm_eps").get_to(config.rms_norm_eps);
    json.at("rope_theta").get_to(config.rope_theta);
    json.at("rotary_dim").get_to(config.rotary_dim);
    json.at("rope_half_split").get_to(config.rope_half_split);
    json.at("tied_embeddings").get_to(config.tied_embeddings);
    json.at("eos_token_ids").get_to(config.eos_token_ids);
    return config;
  } catch (const nlohmann::json::exception& error) {
    return make_error(Errc::kDataLoss, std::string("model configuration: ") + error.what());
  }
}

}  // namespace thaw::model
