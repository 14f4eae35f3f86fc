#include "engine/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <limits>
#include <mutex>
#include <utility>

#include <tsl/robin_map.h>

#include "engine/text/tokenizer_bpe.h"
#include "engine/text/tokenizer_special.h"
#include "engine/text/tokenizer_split.h"
#include "engine/text/tokenizer_unicode.h"

namespace thaw::text {
namespace {

using Kind = TokenizerSpec::TokenKind;

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

Error spec_error(std::string message) {
  return make_error(Errc::kInvalidArgument, "tokenizer: " + std::move(message));
}

}  // namespace

struct Tokenizer::Impl {
  /// What one encoding thread uses; kept between calls so that the cache stays warm.
  struct Worker {
    WordCache cache;
    BpeMerges::Scratch scratch;
  };
  static constexpr std::size_t kIdleWorkers = 8;
  static constexpr std::size_t kKeptScratchSymbols = 65536;

  std::string bytes;  ///< of all tokens, end to end
  std::vector<std::uint32_t> offsets;  ///< of each token in `bytes`, and the end
  std::vector<Kind> kinds;
  tsl::robin_map<std::string_view, TokenId> words;  ///< tokens that BPE may produce, by bytes
  BpeMerges merges;
  SpecialTokens specials;
  PreTokenLength pre_token = nullptr;
  bool ignore_merges = false;  ///< a pre-token in the vocabulary is that token, whatever merges say
  bool add_bos = false;
  TokenId bos = -1;
  std::vector<TokenId> eos;

  mutable std::mutex mutex;
  mutable std::vector<std::unique_ptr<Worker>> idle;  ///< guarded by mutex

  bool contains(TokenId token) const {
    return token >= 0 && static_cast<std::size_t>(token) < kinds.size();
  }
  std::string_view bytes_of(TokenId token) const {
    const auto index = static_cast<std::size_t>(token);
    return std::string_view(bytes).substr(offsets[index], offsets[index + 1] - offsets[index]);
  }

  /// The token that BPE may produce for these bytes, or -1.
  TokenId word_id(std::string_view word) const {
    const auto it = words.find(word);
    return it == words.end() ? -1 : it->second;
  }

  Result<void> add_tokens(const TokenizerSpec& spec, const ByteAlphabet& alphabet);
  Result<void> add_merges(const TokenizerSpec& spec, const ByteAlphabet& alphabet);

  std::unique_ptr<Worker> take_worker() const;
  void give_worker(std::unique_ptr<Worker> worker) const;
  void encode_word(std::string_view word, BpeMerges::Scratch& scratch,
                   std::vector<TokenId>& out) const;
  void encode_ordinary(std::string_view text, Worker& worker, std::vector<TokenId>& out) const;
  std::vector<TokenId> encode(std::string_view text,
                              std::span<const ByteRange> control_ranges) const;
};

Result<void> Tokenizer::Impl::add_tokens(const TokenizerSpec& spec, const ByteAlphabet& alphabet) {
  std::size_t total = 0;
  for (const std::string& token : spec.tokens) {
    total += token.size();
  }
  if (total >= std::numeric_limits<std::uint32_t>::max()) {
    return spec_error("the texts of all tokens take " + std::to_string(total) +
                      " bytes, 4 GiB is the limit");
  }
  bytes.reserve(total);  // never moves again: `words` holds views
  offsets.reserve(spec.tokens.size() + 1);
  words.reserve(spec.tokens.size());
  kinds = spec.kinds;
  offsets.push_back(0);
  for (std::size_t i = 0; i < spec.tokens.size(); ++i) {
    const auto id = static_cast<TokenId>(i);
    const std::string& token = spec.tokens[i];
    const bool is_special = kinds[i] == Kind::kControl || kinds[i] == Kind::kUserDefined;
    if (is_special || !alphabet.decode(token, bytes)) bytes += token;
    offsets.push_back(static_cast<std::uint32_t>(bytes.size()));
    const std::string_view text = bytes_of(id);
    if (text.empty()) continue;
    if (is_special) specials.add(text, id, kinds[i] == Kind::kControl);
    if (kinds[i] == Kind::kControl || kinds[i] == Kind::kUnused) continue;
    const auto [it, is_new] = words.try_emplace(text, id);
    if (!is_new && kinds[i] != Kind::kUserDefined &&
        kinds[static_cast<std::size_t>(it->second)] == Kind::kUserDefined) {
      it.value() = id;
    }
  }
  for (int byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    merges.set_byte(static_cast<std::uint8_t>(byte), word_id(std::string_view(&text, 1)));
  }
  return {};
}

Result<void> Tokenizer::Impl::add_merges(const TokenizerSpec& spec, const ByteAlphabet& alphabet) {
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
    if (!alphabet.decode(merge.substr(0, space), both)) return fail("is not in GPT-2's alphabet");
    const std::size_t left_size = both.size();
    if (!alphabet.decode(merge.substr(space + 1), both)) return fail("is not in GPT-2's alphabet");
    const std::string_view result = both;
    const TokenId left_id = word_id(result.substr(0, left_size));
    if (left_id < 0) return fail("has a left side that is not in the vocabulary");
    const TokenId right_id = word_id(result.substr(left_size));
    if (right_id < 0) return fail("has a right side that is not in the vocabulary");
    // Most vocabularies hold the results in the order of the merges: look there first.
    ++result_id;
    if (!contains(result_id) || bytes_of(result_id) != result ||
        kinds[static_cast<std::size_t>(result_id)] != Kind::kNormal) {
      result_id = word_id(result);
    }
    if (result_id < 0) return fail("has a result that is not in the vocabulary");
    merges.add(left_id, right_id, result_id);
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
    if (const TokenId id = word_id(word); id >= 0) {
      out.push_back(id);
      return;
    }
  }
  merges.encode(word, scratch, out);
}

void Tokenizer::Impl::encode_ordinary(std::string_view text, Worker& worker,
                                      std::vector<TokenId>& out) const {
  while (!text.empty()) {
    const std::size_t length = pre_token(text);
    const std::string_view word = text.substr(0, length);
    if (length > WordCache::kMaxWordBytes) {
      encode_word(word, worker.scratch, out);
    } else {
      const WordCache::Key key = WordCache::make_key(word, text.size());
      if (const WordCache::Slot* slot = worker.cache.find(key)) {
        if (slot->count == 1) {
          out.push_back(slot->ids[0]);
        } else {
          out.insert(out.end(), slot->ids.begin(), slot->ids.begin() + slot->count);
        }
      } else {
        const std::size_t before = out.size();
        encode_word(word, worker.scratch, out);
        const std::size_t count = out.size() - before;
        if (count <= WordCache::kMaxIds) worker.cache.put(key, out.data() + before, count);
      }
    }
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
    encode_ordinary(text.substr(at, end - at), *worker, out);
    if (match.token < 0) break;
    out.push_back(match.token);
    at = match.range.end;
  }
  give_worker(std::move(worker));
  return out;
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::create(TokenizerSpec spec) {
  const auto pre_tokenizer = pre_tokenizer_by_name(spec.pre_tokenizer);
  if (!pre_tokenizer) {
    return make_error(Errc::kUnsupported, "tokenizer: pre-tokenizer \"" + spec.pre_tokenizer +
                                              "\" is not supported; supported are " +
                                              std::string(pre_tokenizer_names()));
  }
  if (spec.tokens.empty()) return spec_error("the vocabulary is empty");
  if (spec.kinds.size() != spec.tokens.size()) {
    return spec_error(std::to_string(spec.kinds.size()) + " token kinds for " +
                      std::to_string(spec.tokens.size()) + " tokens, one each is needed");
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

  auto impl = std::make_unique<Impl>();
  impl->pre_token = pre_token_length(*pre_tokenizer);
  impl->ignore_merges = *pre_tokenizer == PreTokenizer::kLlamaBpe;
  impl->add_bos = spec.add_bos;
  impl->bos = spec.bos;
  impl->eos = std::move(spec.eos);
  const ByteAlphabet alphabet;
  if (auto added = impl->add_tokens(spec, alphabet); !added) return added.error();
  if (auto added = impl->add_merges(spec, alphabet); !added) return added.error();
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
  if (!impl_->contains(token) || (!keep_special && is_special(token))) return {};
  return impl_->bytes_of(token);
}

std::string Tokenizer::decode(std::span<const TokenId> tokens, bool keep_special) const {
  std::string text;
  for (const TokenId token : tokens) {
    text += token_bytes(token, keep_special);
  }
  return text;
}

int Tokenizer::vocab_size() const {
  return static_cast<int>(impl_->kinds.size());
}

bool Tokenizer::is_special(TokenId token) const {
  return impl_->contains(token) && impl_->kinds[static_cast<std::size_t>(token)] == Kind::kControl;
}

TokenId Tokenizer::bos() const {
  return impl_->bos;
}
bool Tokenizer::add_bos() const {
  return impl_->add_bos;
}
const std::vector<TokenId>& Tokenizer::eos() const {
  return impl_->eos;
}

TokenId Tokenizer::find(std::string_view token_text) const {
  if (token_text.empty()) return -1;
  if (const TokenId special = impl_->specials.find_exact(token_text); special >= 0) return special;
  return impl_->word_id(token_text);
}

std::string replace_invalid_utf8(std::string_view bytes) {
  std::string pending(bytes);
  std::string text;
  text.reserve(bytes.size());
  drain_utf8(pending, true, text);
  return text;
}

std::string IncrementalDecoder::push(TokenId token) {
  pending_ += tokenizer_->token_bytes(token, keep_special_);
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
