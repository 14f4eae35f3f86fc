#include "cli/model_source.h"

#include "engine/checkpoint/end_tokens.h"
#include "engine/text/tokenizer_split.h"

namespace thaw::cli {
namespace {

using TokenKind = text::TokenizerSpec::TokenKind;

Error bad_file(const checkpoint::GgufFile& file, Errc code, const std::string& what) {
  return make_error(code, file.path() + ": " + what);
}

/// Values of tokenizer.ggml.token_type, from the GGUF specification; 0 and 2 (undefined, unknown)
/// match no text, as control tokens in it do not.
TokenKind kind_of(std::int64_t type) {
  switch (type) {
    case 1:
      return TokenKind::kNormal;
    case 4:
      return TokenKind::kUserDefined;
    case 5:
      return TokenKind::kUnused;
    case 6:
      return TokenKind::kByte;
    default:
      return TokenKind::kControl;
  }
}

/// What a SentencePiece vocabulary ("llama") has in place of merges and a pre-tokenizer.
Result<void> set_sentence_piece(const checkpoint::GgufFile& file, text::TokenizerSpec& spec) {
  const auto* scores = file.get_floats("tokenizer.ggml.scores");
  if (scores == nullptr || scores->size() != spec.tokens.size()) {
    return bad_file(file, Errc::kDataLoss,
                    "tokenizer.ggml.scores has " +
                        std::to_string(scores == nullptr ? 0 : scores->size()) + " entries for " +
                        std::to_string(spec.tokens.size()) + " tokens");
  }
  spec.style = text::TokenizerSpec::Style::kSentencePiece;
  spec.scores.assign(scores->begin(), scores->end());
  if (file.get_bool("tokenizer.ggml.add_space_prefix").value_or(true)) {
    spec.space_prefix = text::TokenizerSpec::SpacePrefix::kEveryPart;
    spec.decode_start = text::TokenizerSpec::DecodeStart::kDropSpace;
  }
  const auto unknown = file.get_int("tokenizer.ggml.unknown_token_id").value_or(-1);
  if (unknown < -1 || unknown >= static_cast<std::int64_t>(spec.tokens.size())) {
    return bad_file(file, Errc::kDataLoss,
                    "tokenizer.ggml.unknown_token_id is " + std::to_string(unknown) +
                        ", outside the vocabulary of " + std::to_string(spec.tokens.size()));
  }
  spec.unknown = static_cast<TokenId>(unknown);
  return {};
}

}  // namespace

Result<text::TokenizerSpec> tokenizer_spec_from_gguf(const checkpoint::GgufFile& file) {
  const auto model = file.get_string("tokenizer.ggml.model");
  if (!model) return bad_file(file, Errc::kDataLoss, "tokenizer.ggml.model is missing");
  const bool byte_level = *model == "gpt2";
  if (!byte_level && *model != "llama") {
    return bad_file(file, Errc::kUnsupported,
                    "tokenizer '" + std::string(model->substr(0, 32)) +
                        "' is not supported; supported are gpt2 (byte-level BPE) and llama "
                        "(SentencePiece BPE)");
  }
  const auto* tokens = file.get_strings("tokenizer.ggml.tokens");
  const auto* kinds = file.get_ints("tokenizer.ggml.token_type");
  const auto* merges = file.get_strings("tokenizer.ggml.merges");
  if (tokens == nullptr || tokens->empty())
    return bad_file(file, Errc::kDataLoss, "tokenizer.ggml.tokens is missing or empty");
  if (byte_level && merges == nullptr)
    return bad_file(file, Errc::kDataLoss, "tokenizer.ggml.merges is missing");
  if (kinds != nullptr && kinds->size() != tokens->size()) {
    return bad_file(file, Errc::kDataLoss,
                    "tokenizer.ggml.token_type has " + std::to_string(kinds->size()) +
                        " entries for " + std::to_string(tokens->size()) + " tokens");
  }
  if (const auto* embedding = file.find_tensor("token_embd.weight");
      embedding != nullptr && embedding->rows() < static_cast<std::int64_t>(tokens->size())) {
    return bad_file(file, Errc::kDataLoss,
                    std::to_string(tokens->size()) + " tokens, but the model embeds " +
                        std::to_string(embedding->rows()));
  }

  text::TokenizerSpec spec;
  spec.tokens.assign(tokens->begin(), tokens->end());
  if (byte_level) spec.merges.assign(merges->begin(), merges->end());
  spec.kinds.reserve(tokens->size());
  for (std::size_t id = 0; id < tokens->size(); ++id)
    spec.kinds.push_back(kinds == nullptr ? TokenKind::kNormal : kind_of((*kinds)[id]));
  if (byte_level) {
    // A file without the key predates it; GPT-2's pattern is what such files were made with.
    spec.pre_tokenizer = file.get_string("tokenizer.ggml.pre").value_or("gpt-2");
    spec.ignore_merges = text::gguf_ignores_merges(spec.pre_tokenizer);
    spec.normalize_nfc = text::gguf_normalizes_nfc(spec.pre_tokenizer);
  } else if (auto done = set_sentence_piece(file, spec); !done) {
    return done.error();
  }
  // The files of Llama 1 to 3 begin a text with BOS without saying so.
  spec.add_bos =
      file.get_bool("tokenizer.ggml.add_bos_token").value_or(!byte_level || spec.ignore_merges);
  spec.add_eos = file.get_bool("tokenizer.ggml.add_eos_token").value_or(false);
  const auto bos = file.get_int("tokenizer.ggml.bos_token_id").value_or(-1);
  if (bos < -1 || bos >= static_cast<std::int64_t>(tokens->size())) {
    return bad_file(file, Errc::kDataLoss,
                    "tokenizer.ggml.bos_token_id is " + std::to_string(bos) +
                        ", outside the vocabulary of " + std::to_string(tokens->size()));
  }
  spec.bos = static_cast<TokenId>(bos);
  spec.eos = checkpoint::end_tokens(file);
  return spec;
}

std::optional<std::string_view> chat_template_from_gguf(const checkpoint::GgufFile& file) {
  return file.get_string("tokenizer.chat_template");
}

}  // namespace thaw::cli
