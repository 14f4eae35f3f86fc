#include "engine/model/families/rope.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace thaw::model {
namespace {

constexpr int kMaxPositions = 1 << 24;

/// The attention factor that YaRN's paper suggests for a stretch by `factor`.
/// Source: Peng et al., arXiv:2309.00071, section 3.4.
double yarn_magnitude(double factor, double weight = 1.0) {
  return factor <= 1.0 ? 1.0 : 0.1 * weight * std::log(factor) + 1.0;
}

/// What YaRN was stretched to, where the file's own figure is the context before that.
int stretched(const ModelConfig& config) {
  const double positions = config.rope.original_positions * config.rope.factor;
  return std::max(config.max_positions,
                  static_cast<int>(std::min<double>(positions, kMaxPositions)));
}

std::string unsupported_kind(const std::string& kind, const char* supported) {
  std::string why;
  if (kind == "dynamic" || kind == "longrope" || kind == "su") {
    why =
        ": its angles depend on the length of the whole text, so that cached keys would change "
        "with it";
  }
  return "RoPE scaling '" + kind + "' is not supported" + why + "; supported are " + supported;
}

void read_hf_yarn(JsonKeys& scaling, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  rope.scaling = RopeScaling::kYarn;
  rope.factor = scaling.has("factor")
                    ? scaling.real("factor")
                    : static_cast<double>(config.max_positions) / rope.original_positions;
  // Zero stands for the default there.
  rope.beta_fast = scaling.number("beta_fast").value_or(0.0);
  rope.beta_slow = scaling.number("beta_slow").value_or(0.0);
  if (rope.beta_fast == 0.0) rope.beta_fast = 32.0;
  if (rope.beta_slow == 0.0) rope.beta_slow = 1.0;
  rope.truncate = scaling.flag("truncate", true);
  const double mscale = scaling.number("mscale").value_or(0.0);
  const double mscale_all = scaling.number("mscale_all_dim").value_or(0.0);
  if (const auto magnitude = scaling.number("attention_factor")) {
    rope.magnitude = *magnitude;
  } else if (mscale != 0.0 && mscale_all != 0.0) {
    rope.magnitude = yarn_magnitude(rope.factor, mscale) / yarn_magnitude(rope.factor, mscale_all);
  } else {
    rope.magnitude = yarn_magnitude(rope.factor);
  }
  if (!(rope.magnitude > 0.0) || !std::isfinite(rope.magnitude)) {
    scaling.fail(Errc::kDataLoss, "attention_factor is " + std::to_string(rope.magnitude) +
                                      "; a positive number is right");
  }
  config.max_positions = stretched(config);
}

}  // namespace

void read_gguf_rope(GgufKeys& keys, ModelConfig& config) {
  RopeConfig& rope = config.rope;
  rope.theta = keys.real("rope.freq_base", 10000.0);
  rope.dim = keys.optional("rope.dimension_count", config.head_dim, config.head_dim);
  if (rope.dim % 2 != 0) {
    keys.fail(Errc::kUnsupported,
              keys.full("rope.dimension_count") + " is odd; an even number is right");
  }
  config.rope_factors = keys.has_tensor("rope_freqs.weight");

  // A file without a kind but with a factor is scaled linearly; 0 stands for no factor.
  const double factor = keys.find_real("rope.scaling.factor")
                            .value_or(keys.find_real("rope.scale_linear").value_or(0));
  const std::string kind =
      keys.find_text("rope.scaling.type").value_or(factor != 0.0 ? "linear" : "none");
  if (kind == "none" || (kind == "linear" && (factor == 0.0 || factor == 1.0))) return;
  if (kind != "linear" && kind != "yarn") {
    keys.fail(Errc::kUnsupported,
              unsupported_kind(kind, "none, linear, yarn and the factors of rope_freqs.weight"));
    return;
  }
  rope.scaling = kind == "linear" ? RopeScaling::kLinear : RopeScaling::kYarn;
  rope.factor = factor;
  if (!(factor > 0.0) || !std::isfinite(factor)) {
    keys.fail(Errc::kDataLoss, keys.full("rope.scaling.factor") + " is " + std::to_string(factor) +
                                   "; a positive number is right");
  }
  if (rope.scaling == RopeScaling::kLinear) return;
  rope.original_positions =
      keys.optional("rope.scaling.original_context_length", config.max_positions, kMaxPositions);
  rope.beta_fast = keys.real("rope.scaling.yarn_beta_fast", 32.0);
  rope.beta_slow = keys.real("rope.scaling.yarn_beta_slow", 1.0);
  const double log_multiplier = keys.find_real("rope.scaling.yarn_log_multiplier").value_or(0.0);
  if (keys.find_real("rope.scaling.yarn_ext_factor").value_or(1.0) != 1.0) {
    keys.fail(Errc::kUnsupported,
              keys.full("rope.scaling.yarn_ext_factor") + " is not 1; only the whole ramp is done");
  }
  rope.magnitude = keys.real("rope.scaling.attn_factor", 1.0) *
                   keys.real("rope.scaling.yarn_attn_factor", 1.0) * yarn_magnitude(rope.factor) /
                   (log_multiplier == 0.0 ? 1.0 : yarn_magnitude(rope.factor, log_multiplier));
}

void read_hf_rope(JsonKeys& keys, ModelConfig& config, double default_theta) {
  RopeConfig& rope = config.rope;
  rope.half_split = true;
  rope.dim = config.head_dim;
  auto parameters = keys.object("rope_parameters");
  if (!parameters) parameters = keys.object("rope_scaling");
  JsonKeys scaling(parameters.value_or(nlohmann::json::object()), "");
  rope.theta = scaling.real("rope_theta", keys.real("rope_theta", default_theta));
  for (const char* layers : {"full_attention", "sliding_attention"}) {
    if (scaling.has(layers)) {
      keys.fail(Errc::kUnsupported, std::string("rope_parameters by kind of layer (") + layers +
                                        ") are not supported; one set for all layers is");
    }
  }
  if (scaling.number("partial_rotary_factor")
          .value_or(keys.number("partial_rotary_factor").value_or(1.0)) != 1.0) {
    keys.fail(Errc::kUnsupported,
              "partial_rotary_factor is not supported in the " + config.family + " family");
  }
  if (rope.dim % 2 != 0) keys.fail(Errc::kUnsupported, "head_dim is odd; an even number is right");

  rope.original_positions = keys.integer(
      "original_max_position_embeddings", kMaxPositions,
      scaling.integer("original_max_position_embeddings", kMaxPositions, config.max_positions));
  const std::string kind = scaling.text("rope_type", scaling.text("type", "default"));
  if (kind == "linear") {
    rope.scaling = RopeScaling::kLinear;
    rope.factor = scaling.real("factor");
  } else if (kind == "llama3") {
    rope.scaling = RopeScaling::kLlama3;
    rope.factor = scaling.real("factor");
    rope.low_freq_factor = scaling.real("low_freq_factor");
    rope.high_freq_factor = scaling.real("high_freq_factor");
  } else if (kind == "yarn") {
    read_hf_yarn(scaling, config);
  } else if (kind != "default") {
    keys.fail(Errc::kUnsupported, unsupported_kind(kind, "default, linear, llama3 and yarn"));
  }
  if (const auto& error = scaling.error())
    keys.fail(error->code, "RoPE parameters" + error->message);
}

}  // namespace thaw::model
