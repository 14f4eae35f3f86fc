#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <tsl/robin_map.h>

#include "engine/base/result.h"
#include "engine/text/tokenizer_bpe.h"
#include "engine/text/tokenizer_spec.h"

namespace thaw::text {

/// kInvalidArgument, for what is wrong with a spec.
inline Error spec_error(const std::string& message) {
  return make_error(Errc::kInvalidArgument, "tokenizer: " + message);
}

/// The tokens of a tokenizer and the bytes that each stands for inside a text.
class Vocabulary {
 public:
  Vocabulary() = default;
  Vocabulary(const Vocabulary&) = delete;  // `words_` holds views of `bytes_`
  Vocabulary& operator=(const Vocabulary&) = delete;

  /// Takes the tokens of a spec whose kinds are one per token. Errors: more than 4 GiB of text.
  Result<void> fill(const TokenizerSpec& spec);
  /// The merges that the spec lists, or those that its scores imply, and the symbols they start
  /// from. REQUIRES: fill(spec). Errors name the merge or the token.
  Result<void> fill_bpe(const TokenizerSpec& spec, BpeSymbols& symbols, BpeMerges& merges);

  std::size_t size() const { return kinds_.size(); }
  bool contains(TokenId token) const {
    return token >= 0 && static_cast<std::size_t>(token) < kinds_.size();
  }
  /// REQUIRES for both: contains(token).
  std::string_view bytes_of(TokenId token) const {
    const auto index = static_cast<std::size_t>(token);
    return std::string_view(bytes_).substr(offsets_[index], offsets_[index + 1] - offsets_[index]);
  }
  TokenizerSpec::TokenKind kind_of(TokenId token) const {
    return kinds_[static_cast<std::size_t>(token)];
  }
  /// The token that BPE may produce for these bytes, or -1.
  TokenId word_id(std::string_view word) const {
    const auto it = words_.find(word);
    return it == words_.end() ? -1 : it->second;
  }
  /// Whether some merge joins a space to what stands before it; if none does, pieces that begin at
  /// runs of spaces can be encoded apart. REQUIRES: fill_bpe.
  bool merges_into_spaces() const { return merges_into_spaces_; }

 private:
  Result<void> fill_merges(const TokenizerSpec& spec, BpeMerges& merges);
  Result<void> fill_scored_merges(const TokenizerSpec& spec, BpeMerges& merges);
  void fill_symbols(const TokenizerSpec& spec, BpeSymbols& symbols) const;
  void note_result(std::string_view result);

  std::string bytes_;  ///< of all tokens, end to end
  std::vector<std::uint32_t> offsets_;  ///< of each token in `bytes_`, and the end
  std::vector<TokenizerSpec::TokenKind> kinds_;
  /// Tokens that BPE may produce, by bytes. Stored hashes spare most looks at the bytes.
  tsl::robin_map<std::string_view, TokenId, std::hash<std::string_view>, std::equal_to<>,
                 std::allocator<std::pair<std::string_view, TokenId>>, /*StoreHash=*/true>
      words_;
  bool merges_into_spaces_ = false;
};

}  // namespace thaw::text
