#pragma once

#include <cstdint>
#include <fstream>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/text/tokenizer.h"

namespace thaw::text {

/// A file of tests/data; scripts/fixtures/tokenizer_parity.py says what the tokenizer_* ones hold.
inline nlohmann::json read_fixture(const std::string& name) {
  const std::string path = std::string(THAW_SOURCE_DIR) + "/tests/data/" + name;
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot open " + path);
  return nlohmann::json::parse(file);
}

inline TokenizerSpec spec_from_fixture(const nlohmann::json& json) {
  TokenizerSpec spec;
  spec.tokens = json.at("tokens").get<std::vector<std::string>>();
  for (const std::string kind : json.at("kinds")) {
    spec.kinds.push_back(kind == "control"        ? TokenizerSpec::TokenKind::kControl
                         : kind == "user_defined" ? TokenizerSpec::TokenKind::kUserDefined
                                                  : TokenizerSpec::TokenKind::kNormal);
  }
  spec.merges = json.at("merges").get<std::vector<std::string>>();
  spec.pre_tokenizer = json.at("pre_tokenizer");
  spec.ignore_merges = spec.pre_tokenizer == "llama-bpe";
  return spec;
}

/// The small tokenizer of a family: "llama-bpe", "qwen2" or "gpt-2".
inline std::unique_ptr<Tokenizer> small_tokenizer(const std::string& name) {
  const nlohmann::json fixture = read_fixture("tokenizer_" + name + ".json");
  return Tokenizer::create(spec_from_fixture(fixture.at("spec"))).value();
}

inline void append_utf8(std::string& out, std::uint32_t c) {
  if (c < 0x80) {
    out += static_cast<char>(c);
  } else if (c < 0x800) {
    out += static_cast<char>(0xC0 | (c >> 6));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    out += static_cast<char>(0xE0 | (c >> 12));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  } else {
    out += static_cast<char>(0xF0 | (c >> 18));
    out += static_cast<char>(0x80 | ((c >> 12) & 0x3F));
    out += static_cast<char>(0x80 | ((c >> 6) & 0x3F));
    out += static_cast<char>(0x80 | (c & 0x3F));
  }
}

/// Random bytes in which valid UTF-8, broken UTF-8 and ASCII mix.
inline std::string random_bytes(std::mt19937& random, int pieces) {
  const auto below = [&random](std::uint32_t n) {
    return static_cast<std::uint32_t>(random() % n);
  };
  std::string text;
  for (int i = 0; i < pieces; ++i) {
    switch (below(5)) {
      case 0:
        text += static_cast<char>(below(256));
        break;
      case 1:
        append_utf8(text, 0x80 + below(0xD000));
        break;
      case 2:
        append_utf8(text, 0x10000 + below(0x100000));
        break;
      case 3:  // a character cut short
        append_utf8(text, 0x800 + below(0x10F000));
        text.resize(text.size() - 1 - below(2));
        break;
      default:
        text += static_cast<char>(0x20 + below(0x5F));
    }
  }
  return text;
}

}  // namespace thaw::text
