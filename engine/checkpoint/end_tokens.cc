#include "engine/checkpoint/end_tokens.h"

#include <algorithm>
#include <set>

namespace thaw::checkpoint {
namespace {

constexpr std::int64_t kControlToken = 3;  ///< in tokenizer.ggml.token_type

constexpr std::string_view kEndTexts[] = {
    "<|im_end|>",      "<|eot_id|>",    "<|eom_id|>",    "<|end|>",
    "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "<EOT>"};

}  // namespace

std::vector<TokenId> end_tokens(const GgufFile& file) {
  const auto* tokens = file.get_strings("tokenizer.ggml.tokens");
  const auto* kinds = file.get_ints("tokenizer.ggml.token_type");
  const std::size_t vocab_size = tokens == nullptr ? 0 : tokens->size();
  std::set<TokenId> ids;
  for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                          "tokenizer.ggml.eom_token_id"}) {
    const auto id = file.get_int(key);
    if (id && *id >= 0 && static_cast<std::size_t>(*id) < vocab_size)
      ids.insert(static_cast<TokenId>(*id));
  }
  for (std::size_t id = 0; kinds != nullptr && id < std::min(vocab_size, kinds->size()); ++id) {
    if ((*kinds)[id] == kControlToken &&
        std::ranges::find(kEndTexts, (*tokens)[id]) != std::end(kEndTexts)) {
      ids.insert(static_cast<TokenId>(id));
    }
  }
  return {ids.begin(), ids.end()};
}

}  // namespace thaw::checkpoint
