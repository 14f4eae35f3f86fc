#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/base/types.h"

namespace thaw::text {

/// One cut of a text into pre-tokens by a regular expression. What matches is a piece of its own,
/// and so is what lies between two matches.
struct SplitRegex {
  std::string pattern;
  bool keep_matches = true;  ///< false: what matches is left out of the text
  bool keep_gaps = true;  ///< false: what lies between matches is left out
};

/// What a BPE tokenizer is made of, whichever file it came from.
struct TokenizerSpec {
  enum class TokenKind : std::uint8_t { kNormal, kControl, kUserDefined, kUnused, kByte };
  /// How tokens spell text. kByteLevel: each byte as a character of GPT-2's alphabet.
  /// kSentencePiece: as it is, with U+2581 for a space; tokens of kind kByte ("<0x0A>") spell the
  /// bytes of characters that have no token.
  enum class Style : std::uint8_t { kByteLevel, kSentencePiece };
  /// The space before a part of a text, a part being what lies between two special tokens.
  enum class SpacePrefix : std::uint8_t {
    kNone,
    kEveryPart,  ///< one more space, whatever the part begins with
    kEveryPartUnlessThere,  ///< only where the part does not begin with one
    kFirstPartUnlessThere,  ///< as above, and only at the start of the text
  };
  /// What goes missing when a whole text is decoded (a text that goes on another loses nothing).
  enum class DecodeStart : std::uint8_t {
    kAsIs,
    kDropSpace,  ///< one space at the start of the text
    kDropFirstTokenSpaces,  ///< every space of the first token
  };

  Style style = Style::kByteLevel;
  std::vector<std::string> tokens;  ///< by id; empty: no such token
  std::vector<TokenKind> kinds;  ///< by id
  std::vector<std::string> merges;  ///< "left right", best first
  /// By id, kSentencePiece only, in place of merges: of all pairs whose joined text is a token, the
  /// one of highest score is merged first.
  std::vector<float> scores;
  /// kByteLevel: name of a rule that pre_tokenizer_by_name knows. Empty: `splits`.
  std::string pre_tokenizer;
  std::vector<SplitRegex> splits;  ///< one after the other; none: the part stays whole
  bool split_at_spaces = false;  ///< kSentencePiece: a piece begins at every space
  bool ignore_merges = false;  ///< a pre-token in the vocabulary is that token
  bool normalize_nfc = false;  ///< text is composed (Unicode NFC) before it is cut
  SpacePrefix space_prefix = SpacePrefix::kNone;
  DecodeStart decode_start = DecodeStart::kAsIs;
  TokenId unknown = -1;  ///< for characters without tokens; -1: they are left out
  bool fuse_unknown = false;  ///< neighbours share one `unknown`
  std::vector<TokenId> strip_left;  ///< special tokens that take the whitespace before them along
  std::vector<TokenId> strip_right;  ///< and after them
  bool add_bos = false;
  bool add_eos = false;
  TokenId bos = -1;
  std::vector<TokenId> eos;
};

}  // namespace thaw::text
