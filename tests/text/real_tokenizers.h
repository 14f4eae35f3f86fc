#pragma once

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>

#include <nlohmann/json.hpp>

#include "engine/text/hf_tokenizer.h"
#include "engine/text/tokenizer.h"
#include "tests/text/model_tokenizer.h"

namespace thaw::text {

/// Where scripts/get_tokenizers.py puts a vocabulary.
inline std::string vocabulary_path(const std::string& name, const std::string& file) {
  const std::string model = default_model_path();  // CACHE/models/FILE
  const std::size_t cache = model.rfind("/models/");
  return model.substr(0, cache) + "/tokenizers/" + name + "/" + file;
}

inline std::string read_vocabulary_file(const std::string& name, const std::string& file) {
  const std::string path = vocabulary_path(name, file);
  std::ifstream stream(path, std::ios::binary);
  if (!stream) {
    throw std::runtime_error(path + " is needed, run scripts/get_tokenizers.py (--long)");
  }
  return {std::istreambuf_iterator<char>(stream), {}};
}

inline TokenizerSpec spec_from_json(const std::string& tokenizer_json) {
  HfTokenizerFiles files;
  files.tokenizer_json = tokenizer_json;
  return read_hf_tokenizer(files).value().spec;
}

/// The vocabulary of a tokenizer.json as a SentencePiece GGUF file holds it: scores, no merges.
inline TokenizerSpec scored_spec(const std::string& name) {
  TokenizerSpec spec = spec_from_json(read_vocabulary_file(name, "tokenizer.json"));
  const auto json = nlohmann::json::parse(read_vocabulary_file(name, "scores.json"));
  spec.scores = json.at("scores").get<std::vector<float>>();
  spec.merges.clear();
  return spec;
}

inline TokenizerSpec spec_from_vocabulary_gguf(const std::string& name) {
  const auto file = checkpoint::GgufFile::open(vocabulary_path(name, "vocab.gguf"));
  if (!file) {
    throw std::runtime_error("scripts/get_tokenizers.py --long: " + file.error().to_string());
  }
  return spec_from_gguf(*file);
}

}  // namespace thaw::text
