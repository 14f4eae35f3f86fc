#pragma once

#include "engine/model/config.h"
#include "engine/model/gguf_keys.h"
#include "engine/model/json_keys.h"

namespace thaw::model {

/// RoPE of a GGUF file: rope.freq_base, rope.dimension_count and rope.scaling.* (none, linear,
/// yarn), and the factors of rope_freqs.weight, which is how GGUF stores Llama 3's scaling.
/// REQUIRES: head_dim and max_positions are read. Source: the GGUF specification and llama.cpp's
/// key names.
void read_gguf_rope(GgufKeys& keys, ModelConfig& config);

/// RoPE of config.json: rope_parameters, or rope_theta and rope_scaling as older files have it
/// (default, linear, llama3, yarn). YaRN stretches max_positions to factor times the original
/// context. Errors name kinds that depend on the length of the text (dynamic, longrope) and unknown
/// ones. REQUIRES: as above. Source: transformers, modeling_rope_utils.py.
void read_hf_rope(JsonKeys& keys, ModelConfig& config, double default_theta);

}  // namespace thaw::model
