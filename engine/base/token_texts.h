#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/types.h"

namespace thaw {

/// The bytes that each token of a vocabulary stands for, for whoever has to know them without a
/// tokenizer: what a grammar matches.
struct TokenTexts {
  std::string bytes;  ///< of all tokens, end to end
  std::vector<std::uint32_t> ends;  ///< by token: where its bytes end in `bytes`; ascending
  /// Control tokens, ascending; `bytes` holds their names ("<|im_end|>"), which are not text.
  std::vector<TokenId> control;

  std::size_t size() const { return ends.size(); }
  /// REQUIRES: index < size().
  std::string_view text(std::size_t index) const {
    const std::size_t begin = index == 0 ? 0 : ends[index - 1];
    return std::string_view(bytes).substr(begin, ends[index] - begin);
  }
};

}  // namespace thaw
