#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace thaw::text {

/// Rules that cut text into pre-tokens, inside which BPE merges. Source: the regular expressions in
/// tokenizer.json of the model families that GGUF names so, written out in tokenizer_split.cc.
enum class PreTokenizer : std::uint8_t { kGpt2, kSmollm, kLlamaBpe, kQwen2 };

/// By GGUF's name; nullopt where unknown.
std::optional<PreTokenizer> pre_tokenizer_by_name(std::string_view name);
/// The names that pre_tokenizer_by_name knows, for messages.
std::string_view pre_tokenizer_names();

/// Bytes of the pre-token at the start of `text`, at least 1 and whole characters (an invalid byte
/// is a character that is neither letter, number nor space). REQUIRES: !text.empty(), and that what
/// lies before `text` are whole pre-tokens.
using PreTokenLength = std::size_t (*)(std::string_view text);

/// For SentencePiece-style text, whose spaces belong to the word that follows: a piece is a run of
/// spaces and what follows it, or one space and what follows it, or the whole text.
std::size_t space_run_word_length(std::string_view text);
std::size_t space_word_length(std::string_view text);
std::size_t whole_text_length(std::string_view text);

/// The rule's function. Linear in the text over a whole sequence of calls.
PreTokenLength pre_token_length(PreTokenizer kind);

}  // namespace thaw::text
