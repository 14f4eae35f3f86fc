#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/types.h"

namespace thaw::text {

/// What a byte-level BPE tokenizer is made of, whichever file it came from.
struct TokenizerSpec {
  enum class TokenKind : std::uint8_t { kNormal, kControl, kUserDefined, kUnused, kByte };
  std::vector<std::string> tokens;  ///< by id, in the byte-to-unicode alphabet of GPT-2
  std::vector<TokenKind> kinds;  ///< by id
  std::vector<std::string> merges;  ///< "left right", best first
  std::string pre_tokenizer;  ///< GGUF's name: "smollm", "llama-bpe", "qwen2", "gpt-2"
  bool add_bos = false;
  TokenId bos = -1;
  std::vector<TokenId> eos;
};

/// Text with a mark on what the chat template itself wrote: only there may special tokens match.
struct TextSpan {
  std::string_view text;
  bool from_template = false;
};

/// Byte-level BPE. Immutable after creation and thread-safe.
class Tokenizer {
 public:
  /// Errors: unknown pre-tokenizer (named, with the supported ones), inconsistent spec. A byte that
  /// has no token of its own is left out when text holds it, as Hugging Face does.
  static Result<std::unique_ptr<Tokenizer>> create(TokenizerSpec spec);
  ~Tokenizer();

  /// Token ids of UTF-8 text (invalid bytes are encoded as bytes). `parse_special`: control tokens
  /// in the text match as such; else `<|im_start|>` is ordinary text. No BOS is added.
  std::vector<TokenId> encode(std::string_view text, bool parse_special) const;

  /// Token ids of a rendered template: special tokens match in template spans only, and BPE runs
  /// over everything between two specials as if the spans were one text.
  std::vector<TokenId> encode_spans(std::span<const TextSpan> spans) const;

  /// The bytes of one token; control tokens give their text when `keep_special`, else nothing.
  std::string_view token_bytes(TokenId token, bool keep_special) const;
  /// Byte-exact text of a sequence. Ids outside the vocabulary are skipped.
  std::string decode(std::span<const TokenId> tokens, bool keep_special) const;

  int vocab_size() const;
  bool is_special(TokenId token) const;
  TokenId bos() const;
  bool add_bos() const;
  const std::vector<TokenId>& eos() const;
  /// Id of a token by its bytes ("<|im_end|>", " the"), control tokens first; -1 where there is
  /// none.
  TokenId find(std::string_view token_text) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// The text with every maximal invalid piece of UTF-8 replaced by one U+FFFD (as Python's
/// errors="replace").
std::string replace_invalid_utf8(std::string_view bytes);

/// Turns a growing token sequence into text that never ends inside a UTF-8 character. Invalid bytes
/// come out as U+FFFD, as a whole-sequence decode with replacement would give.
class IncrementalDecoder {
 public:
  IncrementalDecoder(const Tokenizer& tokenizer, bool keep_special)
      : tokenizer_(&tokenizer), keep_special_(keep_special) {}

  /// Text that became complete with `token`; may be empty.
  std::string push(TokenId token);
  /// What is left at the end, incomplete characters replaced.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool keep_special_;
  std::string pending_;
};

}  // namespace thaw::text
