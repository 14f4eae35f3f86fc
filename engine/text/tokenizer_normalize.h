#pragma once

#include <string>
#include <string_view>

#include "engine/text/tokenizer_spec.h"

namespace thaw::text {

/// The text in Unicode's composed form (NFC); bytes that are not UTF-8 stay as they are. A view of
/// `text`, or of `scratch` where something changed.
std::string_view normalize_nfc(std::string_view text, std::string& scratch);

/// What happens to a part of a text before it is cut: composition, U+2581 read as the space it
/// stands for, the space before it.
class PartNormalizer {
 public:
  PartNormalizer() = default;
  explicit PartNormalizer(const TokenizerSpec& spec)
      : nfc_(spec.normalize_nfc),
        spaces_(spec.style == TokenizerSpec::Style::kSentencePiece),
        prefix_(spec.space_prefix) {}

  /// What one thread needs besides.
  struct Scratch {
    std::string composed;
    std::string spaced;
  };

  /// REQUIRES: !part.empty(). `at_start`: the part begins the text. The view lasts as long as
  /// `part` and until the next use of `scratch`.
  std::string_view apply(std::string_view part, bool at_start, Scratch& scratch) const;

 private:
  bool nfc_ = false;
  bool spaces_ = false;
  TokenizerSpec::SpacePrefix prefix_ = TokenizerSpec::SpacePrefix::kNone;
};

/// U+2581, which SentencePiece writes for a space.
inline constexpr std::string_view kSpaceMark = "\xE2\x96\x81";

/// Appends `text` with a space for every U+2581.
void append_spaces(std::string_view text, std::string& out);

}  // namespace thaw::text
