#include "engine/text/tokenizer_vocabulary.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

#include "engine/text/tokenizer_normalize.h"
#include "engine/text/tokenizer_unicode.h"

namespace thaw::text {
namespace {

using Kind = TokenizerSpec::TokenKind;
using Style = TokenizerSpec::Style;

// Longer ones are no words; all ways to cut a token in two are tried.
constexpr std::size_t kMaxScoredBytes = 512;

/// GPT-2's alphabet: each byte is written as one printable character. Printable Latin-1 bytes stand
/// for themselves, the others take the code points from U+0100 in order.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    bytes_.fill(-1);
    std::uint32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
      bytes_[printable ? static_cast<std::uint32_t>(byte) : next++] =
          static_cast<std::int16_t>(byte);
    }
  }

  /// Appends the bytes that `text` spells; false (and nothing) where it is not in the alphabet.
  bool decode(std::string_view text, std::string& out) const {
    const std::size_t size = out.size();
    const char* at = text.data();
    const char* const end = at + text.size();
    while (at < end) {
      const Utf8Step step = decode_utf8(at, end);
      const bool known = step.kind == Utf8Step::Kind::kValid && step.code_point < bytes_.size() &&
                         bytes_[step.code_point] >= 0;
      if (!known) {
        out.resize(size);
        return false;
      }
      out += static_cast<char>(bytes_[step.code_point]);
      at += step.length;
    }
    return true;
  }

 private:
  std::array<std::int16_t, 0x100 + 68> bytes_;
};

const ByteAlphabet kByteAlphabet;

/// The byte of "<0x0A>".
std::optional<std::uint8_t> byte_of_token(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
  std::uint8_t byte = 0;
  const char* const end = token.data() + 5;
  const auto [stop, error] = std::from_chars(token.data() + 3, end, byte, 16);
  if (error != std::errc() || stop != end) return std::nullopt;
  return byte;
}

/// Appends what a token stands for inside a text.
bool append_spelled(std::string_view token, Style style, std::string& out) {
  if (style == Style::kByteLevel) return kByteAlphabet.decode(token, out);
  append_spaces(token, out);
  return true;
}

bool begins_character(char c) {
  return (static_cast<std::uint8_t>(c) & 0xC0) != 0x80;
}

}  // namespace

Result<void> Vocabulary::fill(const TokenizerSpec& spec) {
  std::size_t total = 0;
  for (const std::string& token : spec.tokens) {
    total += token.size();
  }
  if (total >= std::numeric_limits<std::uint32_t>::max()) {
    return spec_error("the texts of all tokens take " + std::to_string(total) +
                      " bytes, 4 GiB is the limit");
  }
  const bool sentence_piece = spec.style == Style::kSentencePiece;
  bytes_.reserve(total);  // never moves again: `words_` holds views
  offsets_.reserve(spec.tokens.size() + 1);
  words_.reserve(spec.tokens.size());
  kinds_ = spec.kinds;
  offsets_.push_back(0);
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    const std::string& token = spec.tokens[i];
    const auto byte = sentence_piece && kinds_[i] == Kind::kByte ? byte_of_token(token)
                                                                 : std::optional<std::uint8_t>();
    const bool is_special = kinds_[i] == Kind::kControl || kinds_[i] == Kind::kUserDefined;
    if (byte) {
      bytes_ += static_cast<char>(*byte);
    } else if ((is_special && !sentence_piece) || !append_spelled(token, spec.style, bytes_)) {
      bytes_ += token;
    }
    offsets_.push_back(static_cast<std::uint32_t>(bytes_.size()));
    const std::string_view text = bytes_of(id);
    if (text.empty() || kinds_[i] == Kind::kControl || kinds_[i] == Kind::kUnused) continue;
    if (sentence_piece && kinds_[i] == Kind::kByte) continue;
    const auto [it, is_new] = words_.try_emplace(text, id);
    if (!is_new && kinds_[i] != Kind::kUserDefined && kind_of(it->second) == Kind::kUserDefined) {
      it.value() = id;
    }
  }
  return {};
}

Result<void> Vocabulary::fill_bpe(const TokenizerSpec& spec, BpeSymbols& symbols,
                                  BpeMerges& merges) {
  fill_symbols(spec, symbols);
  return spec.scores.empty() ? fill_merges(spec, merges) : fill_scored_merges(spec, merges);
}

void Vocabulary::fill_symbols(const TokenizerSpec& spec, BpeSymbols& symbols) const {
  if (spec.style == Style::kByteLevel) {
    for (int byte = 0; byte < 256; ++byte) {
      const char text = static_cast<char>(byte);
      symbols.set_byte(static_cast<std::uint8_t>(byte), word_id(std::string_view(&text, 1)));
    }
    return;
  }
  symbols.use_characters(spec.unknown, spec.fuse_unknown);
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) {
    if (kinds_[i] != Kind::kByte) continue;
    if (const auto byte = byte_of_token(spec.tokens[i])) {
      symbols.set_byte(*byte, static_cast<TokenId>(i));
    }
  }
  for (const auto& [word, id] : words_) {
    const Utf8Step step = decode_utf8(word.data(), word.data() + word.size());
    if (step.kind == Utf8Step::Kind::kValid && step.length == word.size()) {
      symbols.set_character(step.code_point, id);
    }
  }
}

void Vocabulary::note_result(std::string_view result) {
  for (std::size_t i = 1; i < result.size() && !merges_into_spaces_; ++i) {
    merges_into_spaces_ = result[i] == ' ' && result[i - 1] != ' ';
  }
}

Result<void> Vocabulary::fill_merges(const TokenizerSpec& spec, BpeMerges& merges) {
  merges.reserve(spec.merges.size());
  std::string both;
  TokenId result_id = -1;
  for (std::size_t i = 0; i < spec.merges.size(); ++i) {
    const std::string_view merge = spec.merges[i];
    const auto fail = [&](const std::string& why) {
      return spec_error("merge " + std::to_string(i) + " \"" + std::string(merge) + "\" " + why);
    };
    const std::size_t space = merge.find(' ');
    if (space == std::string_view::npos || space == 0 || space + 1 == merge.size()) {
      return fail("is not two tokens with a space between");
    }
    both.clear();
    if (!append_spelled(merge.substr(0, space), spec.style, both)) {
      return fail("is not in GPT-2's alphabet");
    }
    const std::size_t left_size = both.size();
    if (!append_spelled(merge.substr(space + 1), spec.style, both)) {
      return fail("is not in GPT-2's alphabet");
    }
    const std::string_view result = both;
    const TokenId left_id = word_id(result.substr(0, left_size));
    if (left_id < 0) return fail("has a left side that is not in the vocabulary");
    const TokenId right_id = word_id(result.substr(left_size));
    if (right_id < 0) return fail("has a right side that is not in the vocabulary");
    // Most vocabularies hold the results in the order of the merges, and all merges of a result
    // together: look there first.
    const auto is_result = [this, result](TokenId id) {
      return contains(id) && kind_of(id) == Kind::kNormal && bytes_of(id) == result;
    };
    if (!is_result(result_id)) ++result_id;
    if (!is_result(result_id)) result_id = word_id(result);
    if (result_id < 0) return fail("has a result that is not in the vocabulary");
    if (spec.style == Style::kSentencePiece) note_result(result);
    merges.add(left_id, right_id, {static_cast<std::uint32_t>(i), result_id});
  }
  return {};
}

Result<void> Vocabulary::fill_scored_merges(const TokenizerSpec& spec, BpeMerges& merges) {
  std::vector<TokenId> order;
  for (std::size_t i = 0; i < spec.scores.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    if (std::isnan(spec.scores[i])) {
      return spec_error("the score of token " + std::to_string(i) + " is not a number");
    }
    if (kinds_[i] != Kind::kNormal || word_id(bytes_of(id)) != id) continue;
    if (bytes_of(id).size() > kMaxScoredBytes) {
      return spec_error("token " + std::to_string(i) + " has " +
                        std::to_string(bytes_of(id).size()) + " bytes; a token that is merged by " +
                        "score has at most " + std::to_string(kMaxScoredBytes));
    }
    order.push_back(id);
  }
  const auto score = [&spec](TokenId id) { return spec.scores[static_cast<std::size_t>(id)]; };
  std::ranges::sort(order, [&score](TokenId a, TokenId b) {
    return score(a) != score(b) ? score(a) > score(b) : a < b;
  });
  merges.reserve(4 * order.size());
  std::uint32_t rank = 0;
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && score(order[i]) != score(order[i - 1])) ++rank;
    const std::string_view result = bytes_of(order[i]);
    bool merged = false;
    for (std::size_t cut = 1; cut < result.size(); ++cut) {
      if (!begins_character(result[cut])) continue;
      const TokenId left = word_id(result.substr(0, cut));
      const TokenId right = left < 0 ? -1 : word_id(result.substr(cut));
      if (right < 0) continue;
      merges.add(left, right, {rank, order[i]});
      merged = true;
    }
    if (merged) note_result(result);
  }
  return {};
}

}  // namespace thaw::text
