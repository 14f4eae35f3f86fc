#pragma once

#include <vector>

#include "tests/model/logits_reference.h"
#include "tests/scheduler/exactness.h"

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

}  // namespace thaw::scheduler
