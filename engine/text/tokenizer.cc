#include "engine/text/tokenizer.h"

#include <algorithm>
#include <mutex>
#include <utility>

#include "engine/text/tokenizer_bpe.h"
#include "engine/text/tokenizer_normalize.h"
#include "engine/text/tokenizer_regex.h"
#include "engine/text/tokenizer_special.h"
#include "engine/text/tokenizer_split.h"
#include "engine/text/tokenizer_unicode.h"
#include "engine/text/tokenizer_vocabulary.h"

namespace thaw::text {
namespace {

using Kind = TokenizerSpec::TokenKind;
using Style = TokenizerSpec::Style;

/// Past the whitespace at the start of `text`.
std::size_t leading_spaces(std::string_view text) {
  const char* at = text.data();
  const char* const end = at + text.size();
  while (at < end) {
    const Utf8Step step = decode_utf8(at, end);
    if (step.kind != Utf8Step::Kind::kValid) break;
    const CharClass value = class_of(step.code_point);
    if (value != kSpace && value != kNewline) break;
    at += step.length;
  }
  return static_cast<std::size_t>(at - text.data());
}

/// Bytes of the text before the whitespace at its end.
std::size_t before_trailing_spaces(std::string_view text) {
  std::size_t kept = text.size();
  while (kept > 0) {
    std::size_t begin = kept - 1;
    while (begin > 0 && (static_cast<std::uint8_t>(text[begin]) & 0xC0) == 0x80)
      --begin;
    const std::string_view last = text.substr(begin, kept - begin);
    if (leading_spaces(last) != last.size()) break;
    kept = begin;
  }
  return kept;
}

}  // namespace

struct Tokenizer::Impl {
  /// What one encoding thread uses; kept between calls so that the cache stays warm.
  struct Worker {
    WordCache cache;
    BpeMerges::Scratch scratch;
    PartNormalizer::Scratch normalizer;
    RegexSplitter::Scratch splitter;
  };
  enum Strip : std::uint8_t { kStripLeft = 1, kStripRight = 2 };
  static constexpr std::size_t kIdleWorkers = 8;
  static constexpr std::size_t kKeptScratchSymbols = 65536;

  Vocabulary vocabulary;
  BpeSymbols symbols;
  BpeMerges merges;
  SpecialTokens specials;
  PartNormalizer normalizer;
  PreTokenLength pre_token = nullptr;  ///< null: `splitter`
  std::unique_ptr<RegexSplitter> splitter;
  std::vector<std::uint8_t> strips;  ///< by token; empty where none strips
  bool ignore_merges = false;
  TokenizerSpec::DecodeStart decode_start = TokenizerSpec::DecodeStart::kAsIs;
  bool add_bos = false;
  bool add_eos = false;
  TokenId bos = -1;
  std::vector<TokenId> eos;

  mutable std::mutex mutex;
  mutable std::vector<std::unique_ptr<Worker>> idle;  ///< guarded by mutex

  void add_specials(const TokenizerSpec& spec);
  Result<void> choose_splitter(const TokenizerSpec& spec);
  Result<void> split_by(std::span<const SplitRegex> splits);

  std::unique_ptr<Worker> take_worker() const;
  void give_worker(std::unique_ptr<Worker> worker) const;
  void encode_word(std::string_view word, BpeMerges::Scratch& scratch,
                   std::vector<TokenId>& out) const;
  /// `readable`: bytes that may be read at the word.
  void encode_cached(std::string_view word, std::size_t readable, Worker& worker,
                     std::vector<TokenId>& out) const;
  void encode_part(std::string_view part, bool at_start, Worker& worker,
                   std::vector<TokenId>& out) const;
  std::vector<TokenId> encode(std::string_view text,
                              std::span<const ByteRange> control_ranges) const;
};

void Tokenizer::Impl::add_specials(const TokenizerSpec& spec) {
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) {
    const bool is_control = spec.kinds[i] == Kind::kControl;
    if (spec.tokens[i].empty() || (!is_control && spec.kinds[i] != Kind::kUserDefined)) continue;
    specials.add(spec.tokens[i], static_cast<TokenId>(i), is_control);
  }
  const auto note = [this](const std::vector<TokenId>& tokens, Strip strip) {
    if (!tokens.empty()) strips.resize(vocabulary.size());
    for (const TokenId token : tokens) {
      strips[static_cast<std::size_t>(token)] |= strip;
    }
  };
  note(spec.strip_left, kStripLeft);
  note(spec.strip_right, kStripRight);
}

Result<void> Tokenizer::Impl::split_by(std::span<const SplitRegex> splits) {
  auto created = RegexSplitter::create(splits);
  if (!created) return created.error();
  splitter = std::move(*created);
  return {};
}

Result<void> Tokenizer::Impl::choose_splitter(const TokenizerSpec& spec) {
  if (!spec.pre_tokenizer.empty()) {
    const auto kind = pre_tokenizer_by_name(spec.pre_tokenizer);
    if (!kind) {
      return make_error(Errc::kUnsupported, "tokenizer: pre-tokenizer \"" + spec.pre_tokenizer +
                                                "\" is not supported; supported are " +
                                                std::string(pre_tokenizer_names()));
    }
    pre_token = pre_token_length(*kind);
    if (pre_token != nullptr) return {};
    const SplitRegex split{std::string(pre_tokenizer_pattern(*kind)), true, true};
    return split_by({&split, 1});
  }
  if (!spec.splits.empty()) return split_by(spec.splits);
  if (spec.style == Style::kByteLevel) {
    pre_token = whole_text_length;
  } else if (spec.split_at_spaces) {
    pre_token = space_word_length;
  } else {
    // Cutting before runs of spaces changes no ids where no merge reaches across.
    const bool can_cut = !vocabulary.merges_into_spaces() && !ignore_merges;
    pre_token = can_cut ? space_run_word_length : whole_text_length;
  }
  return {};
}

std::unique_ptr<Tokenizer::Impl::Worker> Tokenizer::Impl::take_worker() const {
  {
    const std::lock_guard lock(mutex);
    if (!idle.empty()) {
      auto worker = std::move(idle.back());
      idle.pop_back();
      return worker;
    }
  }
  return std::make_unique<Worker>();
}

void Tokenizer::Impl::give_worker(std::unique_ptr<Worker> worker) const {
  if (worker->scratch.ids.capacity() > kKeptScratchSymbols) worker->scratch = {};
  const std::lock_guard lock(mutex);
  if (idle.size() < kIdleWorkers) idle.push_back(std::move(worker));
}

void Tokenizer::Impl::encode_word(std::string_view word, BpeMerges::Scratch& scratch,
                                  std::vector<TokenId>& out) const {
  if (ignore_merges) {
    if (const TokenId id = vocabulary.word_id(word); id >= 0) {
      out.push_back(id);
      return;
    }
  }
  symbols.split(word, scratch.ids);
  merges.apply(scratch);
  out.insert(out.end(), scratch.ids.begin(), scratch.ids.end());
}

inline void Tokenizer::Impl::encode_cached(std::string_view word, std::size_t readable,
                                           Worker& worker, std::vector<TokenId>& out) const {
  if (word.size() > WordCache::kMaxWordBytes) {
    encode_word(word, worker.scratch, out);
    return;
  }
  const WordCache::Key key = WordCache::make_key(word, readable);
  if (const WordCache::Slot* slot = worker.cache.find(key)) {
    if (slot->count == 1) {
      out.push_back(slot->ids[0]);
    } else {
      out.insert(out.end(), slot->ids.begin(), slot->ids.begin() + slot->count);
    }
    return;
  }
  const std::size_t before = out.size();
  encode_word(word, worker.scratch, out);
  const std::size_t count = out.size() - before;
  if (count <= WordCache::kMaxIds) worker.cache.put(key, out.data() + before, count);
}

void Tokenizer::Impl::encode_part(std::string_view part, bool at_start, Worker& worker,
                                  std::vector<TokenId>& out) const {
  if (part.empty()) return;
  std::string_view text = normalizer.apply(part, at_start, worker.normalizer);
  if (pre_token == nullptr) {
    const char* const end = text.data() + text.size();
    for (const std::string_view word : splitter->split(text, worker.splitter)) {
      encode_cached(word, static_cast<std::size_t>(end - word.data()), worker, out);
    }
    return;
  }
  while (!text.empty()) {
    const std::size_t length = pre_token(text);
    encode_cached(text.substr(0, length), text.size(), worker, out);
    text.remove_prefix(length);
  }
}

std::vector<TokenId> Tokenizer::Impl::encode(std::string_view text,
                                             std::span<const ByteRange> control_ranges) const {
  std::vector<TokenId> out;
  out.reserve(text.size() / 2 + 8);  // two bytes a token are rare: seldom grows
  std::unique_ptr<Worker> worker = take_worker();
  std::size_t at = 0;
  while (at < text.size()) {
    const SpecialTokens::Match match = specials.find(text, at, control_ranges);
    const std::size_t end = match.token >= 0 ? match.range.begin : text.size();
    std::string_view part = text.substr(at, end - at);
    const std::uint8_t strip =
        match.token >= 0 && !strips.empty() ? strips[static_cast<std::size_t>(match.token)] : 0;
    if ((strip & kStripLeft) != 0) part = part.substr(0, before_trailing_spaces(part));
    encode_part(part, at == 0, *worker, out);
    if (match.token < 0) break;
    out.push_back(match.token);
    at = match.range.end;
    if ((strip & kStripRight) != 0) at += leading_spaces(text.substr(at));
  }
  give_worker(std::move(worker));
  return out;
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::create(TokenizerSpec spec) {
  if (spec.tokens.empty()) return spec_error("the vocabulary is empty");
  if (spec.kinds.size() != spec.tokens.size()) {
    return spec_error(std::to_string(spec.kinds.size()) + " token kinds for " +
                      std::to_string(spec.tokens.size()) + " tokens, one each is needed");
  }
  if (!spec.scores.empty() &&
      (spec.style != Style::kSentencePiece || spec.scores.size() != spec.tokens.size())) {
    return spec_error(std::to_string(spec.scores.size()) + " scores for " +
                      std::to_string(spec.tokens.size()) +
                      " tokens; one each, and only for a SentencePiece-style vocabulary");
  }
  if (spec.style == Style::kByteLevel && spec.unknown != -1) {
    return spec_error("an unknown token is for SentencePiece-style vocabularies; bytes are known");
  }
  const auto is_token = [&spec](TokenId id) {
    return id >= 0 && static_cast<std::size_t>(id) < spec.tokens.size();
  };
  const std::string limit = " is not below the vocabulary's " + std::to_string(spec.tokens.size());
  if (spec.bos != -1 && !is_token(spec.bos)) {
    return spec_error("BOS token " + std::to_string(spec.bos) + limit);
  }
  if (spec.add_bos && spec.bos == -1) {
    return spec_error("a BOS token is to be added but none is named");
  }
  for (const TokenId id : spec.eos) {
    if (!is_token(id)) return spec_error("EOS token " + std::to_string(id) + limit);
  }

  if (spec.unknown != -1 && !is_token(spec.unknown)) {
    return spec_error("unknown token " + std::to_string(spec.unknown) + limit);
  }
  for (const auto* stripping : {&spec.strip_left, &spec.strip_right}) {
    for (const TokenId id : *stripping) {
      if (!is_token(id)) return spec_error("stripping token " + std::to_string(id) + limit);
    }
  }

  auto impl = std::make_unique<Impl>();
  impl->normalizer = PartNormalizer(spec);
  impl->ignore_merges = spec.ignore_merges;
  impl->decode_start = spec.decode_start;
  impl->add_bos = spec.add_bos;
  impl->add_eos = spec.add_eos;
  impl->bos = spec.bos;
  impl->eos = std::move(spec.eos);
  if (auto filled = impl->vocabulary.fill(spec); !filled) return filled.error();
  auto filled = impl->vocabulary.fill_bpe(spec, impl->symbols, impl->merges);
  if (!filled) return filled.error();
  impl->add_specials(spec);
  if (auto chosen = impl->choose_splitter(spec); !chosen) return chosen.error();
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(impl)));
}

std::vector<TokenId> Tokenizer::encode(std::string_view text, bool parse_special) const {
  const ByteRange whole{0, text.size()};
  return impl_->encode(text, std::span(&whole, parse_special ? 1 : 0));
}

std::vector<TokenId> Tokenizer::encode_spans(std::span<const TextSpan> spans) const {
  std::string text;
  std::vector<ByteRange> template_ranges;
  for (const TextSpan& span : spans) {
    const std::size_t begin = text.size();
    text += span.text;
    if (!span.from_template || span.text.empty()) continue;
    if (!template_ranges.empty() && template_ranges.back().end == begin) {
      template_ranges.back().end = text.size();
    } else {
      template_ranges.push_back({begin, text.size()});
    }
  }
  return impl_->encode(text, template_ranges);
}

std::string_view Tokenizer::token_bytes(TokenId token, bool keep_special) const {
  if (!impl_->vocabulary.contains(token) || (!keep_special && is_special(token))) return {};
  return impl_->vocabulary.bytes_of(token);
}

std::string Tokenizer::decode(std::span<const TokenId> tokens, bool keep_special,
                              DecodeAs as) const {
  std::string text;
  bool at_start = as == DecodeAs::kWholeText;
  for (const TokenId token : tokens) {
    std::string_view bytes = token_bytes(token, keep_special);
    if (at_start && !bytes.empty()) {
      bytes.remove_prefix(dropped_at_start(bytes));
      at_start = false;
    }
    text += bytes;
  }
  return text;
}

std::size_t Tokenizer::dropped_at_start(std::string_view first_token_bytes) const {
  if (!first_token_bytes.starts_with(' ')) return 0;
  switch (impl_->decode_start) {
    case TokenizerSpec::DecodeStart::kAsIs:
      return 0;
    case TokenizerSpec::DecodeStart::kDropSpace:
      return 1;
    case TokenizerSpec::DecodeStart::kDropFirstTokenSpaces:
      return std::min(first_token_bytes.find_first_not_of(' '), first_token_bytes.size());
  }
  return 0;
}

TokenTexts Tokenizer::texts() const {
  TokenTexts texts;
  const Vocabulary& vocabulary = impl_->vocabulary;
  texts.ends.reserve(vocabulary.size());
  for (TokenId token = 0; vocabulary.contains(token); ++token) {
    const Kind kind = vocabulary.kind_of(token);
    if (kind == Kind::kControl) texts.control.push_back(token);
    if (kind != Kind::kUnused) texts.bytes += vocabulary.bytes_of(token);
    texts.ends.push_back(static_cast<std::uint32_t>(texts.bytes.size()));
  }
  return texts;
}

int Tokenizer::vocab_size() const {
  return static_cast<int>(impl_->vocabulary.size());
}

bool Tokenizer::is_special(TokenId token) const {
  return impl_->vocabulary.contains(token) && impl_->vocabulary.kind_of(token) == Kind::kControl;
}

TokenId Tokenizer::bos() const {
  return impl_->bos;
}
bool Tokenizer::add_bos() const {
  return impl_->add_bos;
}
bool Tokenizer::add_eos() const {
  return impl_->add_eos;
}
const std::vector<TokenId>& Tokenizer::eos() const {
  return impl_->eos;
}

TokenId Tokenizer::find(std::string_view token_text) const {
  if (token_text.empty()) return -1;
  if (const TokenId special = impl_->specials.find_exact(token_text); special >= 0) return special;
  return impl_->vocabulary.word_id(token_text);
}

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string pending(bytes);
  std::string text;
  text.reserve(bytes.size());
  drain_utf8(pending, true, text);
  return text;
}

std::string IncrementalDecoder::push(TokenId token) {
  std::string_view bytes = tokenizer_->token_bytes(token, keep_special_);
  if (at_start_ && !bytes.empty()) {
    bytes.remove_prefix(tokenizer_->dropped_at_start(bytes));
    at_start_ = false;
  }
  pending_ += bytes;
  std::string text;
  drain_utf8(pending_, false, text);
  return text;
}

std::string IncrementalDecoder::finish() {
  std::string text;
  drain_utf8(pending_, true, text);
  return text;
}

}  // namespace thaw::text
