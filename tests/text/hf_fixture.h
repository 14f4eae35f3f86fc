#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/text/hf_tokenizer.h"
#include "tests/text/tokenizer_fixture.h"

namespace thaw::text {

using nlohmann::json;

/// A SentencePiece-style tokenizer.json like Llama 2's, over a few words.
inline json tiny_sentence_piece() {
  std::vector<std::string> tokens = {"<unk>", "<s>", "</s>"};
  for (int byte = 0; byte < 256; ++byte) {
    char token[7];
    std::snprintf(token, sizeof(token), "<0x%02X>", byte);
    tokens.push_back(token);
  }
  for (const char* token : {"▁", "a", "b", "c", "▁a", "ab", "▁ab", "▁▁", "é", "bc"}) {
    tokens.push_back(token);
  }
  json model = {{"type", "BPE"},
                {"unk_token", "<unk>"},
                {"byte_fallback", true},
                {"fuse_unk", true},
                {"merges", {"▁ a", "▁a b", "a b", {"▁", "▁"}, "b c"}}};
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    model["vocab"][tokens[i]] = i;
  }
  json added = json::array();
  for (int i = 0; i < 3; ++i) {
    added.push_back({{"id", i}, {"content", tokens[i]}, {"special", true}, {"normalized", false}});
  }
  const json mark = {{"String", " "}};
  const json unmark = {{"String", "▁"}};
  return {{"added_tokens", added},
          {"normalizer",
           {{"type", "Sequence"},
            {"normalizers",
             {{{"type", "Prepend"}, {"prepend", "▁"}},
              {{"type", "Replace"}, {"pattern", mark}, {"content", "▁"}}}}}},
          {"pre_tokenizer", nullptr},
          {"post_processor",
           {{"type", "TemplateProcessing"},
            {"single",
             {{{"SpecialToken", {{"id", "<s>"}, {"type_id", 0}}}},
              {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
            {"special_tokens", {{"<s>", {{"id", "<s>"}, {"ids", {1}}, {"tokens", {"<s>"}}}}}}}},
          {"decoder",
           {{"type", "Sequence"},
            {"decoders",
             {{{"type", "Replace"}, {"pattern", unmark}, {"content", " "}},
              {{"type", "ByteFallback"}},
              {{"type", "Fuse"}},
              {{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}}}}}},
          {"model", model}};
}

/// One of the small byte-level vocabularies of tests/data as its family's tokenizer.json.
inline json small_byte_level(const std::string& name) {
  const json spec = read_fixture("tokenizer_" + name + ".json").at("spec");
  json vocab = json::object();
  json added = json::array();
  for (std::size_t i = 0; i < spec.at("tokens").size(); ++i) {
    const std::string token = spec["tokens"][i];
    const std::string kind = spec["kinds"][i];
    if (kind == "normal") {
      vocab[token] = i;
    } else {
      added.push_back({{"id", i}, {"content", token}, {"special", kind == "control"}});
    }
  }
  json byte_level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  json parts = json::array();
  if (name != "gpt-2") {
    byte_level["use_regex"] = false;
    const std::string digits = name == "llama-bpe" ? R"(\p{N}{1,3})" : R"(\p{N})";
    const std::string regex = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|)" + digits +
                              R"(| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
    parts.push_back({{"type", "Split"},
                     {"pattern", {{"Regex", regex}}},
                     {"behavior", "Isolated"},
                     {"invert", false}});
  }
  parts.push_back(byte_level);
  return {{"added_tokens", added},
          {"normalizer", nullptr},
          {"pre_tokenizer", {{"type", "Sequence"}, {"pretokenizers", parts}}},
          {"post_processor", byte_level},
          {"decoder", {{"type", "ByteLevel"}}},
          {"model",
           {{"type", "BPE"},
            {"vocab", vocab},
            {"merges", spec.at("merges")},
            {"ignore_merges", name == "llama-bpe"}}}};
}

inline Result<HfTokenizer> read_json(const json& tokenizer, const std::string& config = {}) {
  const std::string text = tokenizer.dump();
  HfTokenizerFiles files;
  files.tokenizer_json = text;
  files.tokenizer_config_json = config;
  return read_hf_tokenizer(files);
}

}  // namespace thaw::text
