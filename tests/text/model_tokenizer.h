#pragma once

#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

#include "engine/checkpoint/gguf.h"
#include "engine/text/tokenizer.h"
#include "engine/text/tokenizer_split.h"

namespace thaw::text {

/// Where `make model` puts the default model.
inline std::string default_model_path() {
  const char* cache = std::getenv("THAW_CACHE_DIR");
  const char* home = std::getenv("HOME");
  const std::string root = cache != nullptr && *cache != '\0'
                               ? std::string(cache)
                               : std::string(home != nullptr ? home : "") + "/.cache/thaw";
  return root + "/models/SmolLM2-135M-Instruct.Q4_1.gguf";
}

/// As cli/model_source.cc does, without its checks.
inline TokenizerSpec spec_from_gguf(const checkpoint::GgufFile& file) {
  using Kind = TokenizerSpec::TokenKind;
  TokenizerSpec spec;
  const auto* tokens = file.get_strings("tokenizer.ggml.tokens");
  const auto* merges = file.get_strings("tokenizer.ggml.merges");
  const auto* scores = file.get_floats("tokenizer.ggml.scores");
  const auto* kinds = file.get_ints("tokenizer.ggml.token_type");
  const bool by_score = file.get_string("tokenizer.ggml.model") == "llama";
  if (tokens == nullptr || kinds == nullptr || (by_score ? !scores : !merges)) {
    throw std::runtime_error(file.path() + " holds no tokenizer");
  }
  spec.tokens.assign(tokens->begin(), tokens->end());
  for (const std::int64_t kind : *kinds) {
    spec.kinds.push_back(kind == 2 || kind == 3 ? Kind::kControl
                         : kind == 4            ? Kind::kUserDefined
                         : kind == 5            ? Kind::kUnused
                         : kind == 6            ? Kind::kByte
                                                : Kind::kNormal);
  }
  if (by_score) {
    spec.style = TokenizerSpec::Style::kSentencePiece;
    spec.scores.assign(scores->begin(), scores->end());
    spec.space_prefix = TokenizerSpec::SpacePrefix::kEveryPart;
    spec.decode_start = TokenizerSpec::DecodeStart::kDropSpace;
    return spec;
  }
  spec.merges.assign(merges->begin(), merges->end());
  spec.pre_tokenizer = file.get_string("tokenizer.ggml.pre").value_or("gpt-2");
  spec.ignore_merges = gguf_ignores_merges(spec.pre_tokenizer);
  spec.normalize_nfc = gguf_normalizes_nfc(spec.pre_tokenizer);
  return spec;
}

/// The default model's tokenizer spec. Throws, naming `make model`, where the file is missing.
inline TokenizerSpec default_model_spec() {
  const std::string path = default_model_path();
  const auto file = checkpoint::GgufFile::open(path);
  if (!file) {
    throw std::runtime_error("the default model is needed, run `make model`: " +
                             file.error().to_string());
  }
  return spec_from_gguf(*file);
}

inline std::unique_ptr<Tokenizer> default_model_tokenizer() {
  return Tokenizer::create(default_model_spec()).value();
}

}  // namespace thaw::text
