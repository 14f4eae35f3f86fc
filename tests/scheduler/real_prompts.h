#pragma once

#include <vector>

#include "tests/model/logits_reference.h"
#include "tests/scheduler/exactness.h"
#include "tests/text/model_tokenizer.h"

namespace thaw::scheduler {

/// 16 prompts of real text, eight of them on a trunk of 261 tokens: 64 tokens each. Throws where
/// the fixture is missing that the text is from.
inline ExactnessSuite::Options default_model_options() {
  ExactnessSuite::Options options;
  options.model_path = model::default_model();
  options.max_tokens = 64;
  options.num_blocks = 400;
  options.chunks = {19};
  options.trunk_tokens = 261;
  const std::vector<TokenId> text = model::read_reference().tokens;
  for (int i = 0; i < 16; ++i) {
    std::vector<TokenId> prompt;
    if (i < 8) prompt.assign(text.begin(), text.begin() + 261);
    const auto rest = text.begin() + 261 + 10 * i;
    prompt.insert(prompt.end(), rest, rest + 9 + 5 * i);
    options.prompts.push_back(std::move(prompt));
  }
  return options;
}

/// The same, every other answer being JSON of a schema.
inline ExactnessSuite::Options constrained_model_options() {
  ExactnessSuite::Options options = default_model_options();
  const model::ModelConfig config = model::model_source(model::default_model()).config;
  options.grammar =
      R"({"type":"structural_tag","format":{"type":"json_schema","json_schema":{"type":"array",)"
      R"("items":{"type":"object","properties":{"name":{"type":"string","maxLength":12},)"
      R"("size":{"type":"integer"},"kind":{"enum":["a","b \u00e9",null]}},)"
      R"("required":["name","size","kind"]}}}})";
  options.grammars = std::make_shared<grammar::Service>(
      std::make_shared<const TokenTexts>(text::default_model_tokenizer()->texts()),
      config.vocab_size, config.eos_token_ids);
  return options;
}

}  // namespace thaw::scheduler
