#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/token_texts.h"
#include "engine/base/types.h"
#include "engine/text/tokenizer_spec.h"

namespace thaw::text {

/// Text with a mark on what the chat template itself wrote: only there may special tokens match.
struct TextSpan {
  std::string_view text;
  bool from_template = false;
};

/// Whether a sequence of tokens is decoded as a text of its own, whose first space may be an
/// artefact of encoding (TokenizerSpec::DecodeStart), or goes on a text that came before: the text
/// of a prompt and of its continuation are then the text of both together.
enum class DecodeAs : std::uint8_t { kWholeText, kContinuation };

/// BPE over bytes or over characters with byte fallback. Immutable after creation and thread-safe.
class Tokenizer {
 public:
  /// Errors: unknown pre-tokenizer (named, with the supported ones), a regular expression that
  /// PCRE2 does not take, inconsistent spec. What has no token of its own is left out when text
  /// holds it, or becomes the unknown token where there is one, as in Hugging Face.
  static Result<std::unique_ptr<Tokenizer>> create(TokenizerSpec spec);
  ~Tokenizer();

  /// Token ids of UTF-8 text (invalid bytes are encoded as bytes). `parse_special`: control tokens
  /// in the text match as such; else `<|im_start|>` is ordinary text. No BOS is added.
  std::vector<TokenId> encode(std::string_view text, bool parse_special) const;

  /// Token ids of a rendered template: special tokens match in template spans only, and BPE runs
  /// over everything between two specials as if the spans were one text.
  std::vector<TokenId> encode_spans(std::span<const TextSpan> spans) const;

  /// The bytes of one token inside a text; control tokens give their text when `keep_special`, else
  /// nothing.
  std::string_view token_bytes(TokenId token, bool keep_special) const;
  /// Byte-exact text of a sequence. Ids outside the vocabulary are skipped.
  std::string decode(std::span<const TokenId> tokens, bool keep_special,
                     DecodeAs as = DecodeAs::kWholeText) const;
  /// Bytes that decoding a whole text leaves out at the start of its first token that is not empty.
  std::size_t dropped_at_start(std::string_view first_token_bytes) const;

  /// What each token stands for, for whoever has no tokenizer. Tokens that no text has (of kind
  /// kUnused) stand for nothing.
  TokenTexts texts() const;
  int vocab_size() const;
  bool is_special(TokenId token) const;
  TokenId bos() const;
  bool add_bos() const;
  bool add_eos() const;
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
/// come out as U+FFFD, as a whole-sequence decode with replacement would give. A stream goes on a
/// prompt (and a resumed one goes on what was sent) unless it is said to be a whole text.
class IncrementalDecoder {
 public:
  IncrementalDecoder(const Tokenizer& tokenizer, bool keep_special,
                     DecodeAs as = DecodeAs::kContinuation)
      : tokenizer_(&tokenizer),
        keep_special_(keep_special),
        at_start_(as == DecodeAs::kWholeText) {}

  /// Text that became complete with `token`; may be empty.
  std::string push(TokenId token);
  /// Bytes of a character wait for the rest of it.
  bool is_inside_character() const { return !pending_.empty(); }
  /// What is left at the end, incomplete characters replaced.
  std::string finish();

 private:
  const Tokenizer* tokenizer_;
  bool keep_special_;
  bool at_start_;
  std::string pending_;
};

}  // namespace thaw::text
