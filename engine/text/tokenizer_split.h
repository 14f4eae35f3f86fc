#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace thaw::text {

/// Rules that cut text into pre-tokens, inside which BPE merges. Source: the regular expressions in
/// tokenizer.json of the model families that GGUF names so, written out in tokenizer_split.cc.
enum class PreTokenizer : std::uint8_t { kGpt2, kSmollm, kLlamaBpe, kQwen2, kTekken };

/// By GGUF's name, of which some families share a rule; nullopt where unknown.
std::optional<PreTokenizer> pre_tokenizer_by_name(std::string_view name);
/// The names that pre_tokenizer_by_name knows, for messages.
std::string_view pre_tokenizer_names();
/// Whether GGUF's name stands for vocabularies whose whole words go before their merges.
bool gguf_ignores_merges(std::string_view name);
/// Whether GGUF's name stands for vocabularies whose text is composed first, which the file does
/// not say: Qwen's.
bool gguf_normalizes_nfc(std::string_view name);
/// The name of the rule that equals cutting by these regular expressions one after the other, by
/// their exact text; empty where there is none.
std::string_view pre_tokenizer_by_patterns(std::span<const std::string_view> patterns);
/// GPT-2's regular expression, which Hugging Face's ByteLevel cuts by.
std::string_view gpt2_pattern();

/// Bytes of the pre-token at the start of `text`, at least 1 and whole characters (an invalid byte
/// is a character that is neither letter, number nor space). REQUIRES: !text.empty(), and that what
/// lies before `text` are whole pre-tokens.
using PreTokenLength = std::size_t (*)(std::string_view text);

/// For SentencePiece-style text, whose spaces belong to the word that follows: a piece is a run of
/// spaces and what follows it, or one space and what follows it, or the whole text.
std::size_t space_run_word_length(std::string_view text);
std::size_t space_word_length(std::string_view text);
std::size_t whole_text_length(std::string_view text);

/// The rule's function; null for kTekken, which pre_tokenizer_pattern spells. Linear in the text
/// over a whole sequence of calls.
PreTokenLength pre_token_length(PreTokenizer kind);
/// The rule's (first) regular expression.
std::string_view pre_tokenizer_pattern(PreTokenizer kind);

}  // namespace thaw::text
