#include <algorithm>
#include <exception>
#include <optional>
#include <string_view>
#include <utility>

#include <xgrammar/work_bound.h>
#include <xgrammar/xgrammar.h>

#include "engine/grammar/document.h"
#include "engine/grammar/grammar.h"

namespace thaw::grammar {
namespace {

// Of a matcher's single call. A step waits for it.
constexpr std::chrono::milliseconds kMatchTime{1000};
constexpr std::int64_t kMatchParts = 1'000'000;

// The library's messages begin with time and place: "[12:00:00] cpp/file.cc:12: ".
std::string message_of(const std::exception& failure) {
  std::string_view text = failure.what();
  if (text.starts_with('[')) {
    const std::size_t file = text.find(".cc:");
    const std::size_t end = file == std::string_view::npos ? file : text.find(": ", file);
    if (end != std::string_view::npos) text.remove_prefix(end + 2);
  }
  while (!text.empty() && (text.back() == '\n' || text.back() == ' '))
    text.remove_suffix(1);
  constexpr std::size_t kMostBytes = 500;  // it may quote the document
  return std::string(text.substr(0, kMostBytes));
}

/// Runs `call`, which the library may end by an exception or the bound does.
template <typename Call>
auto bounded(std::chrono::milliseconds cpu_time, std::int64_t parts, Call call)
    -> Result<decltype(call())> try {
  const xgrammar::WorkBound bound(cpu_time, parts);
  return call();
} catch (const xgrammar::WorkBoundExceeded& failure) {
  return wrong(std::string(failure.what()) + "; a simpler document is right");
} catch (const std::exception& failure) {
  return wrong(message_of(failure));
}

void set_bit(std::span<std::uint32_t> mask, TokenId token) {
  mask[static_cast<std::size_t>(token) / 32] |= 1U << (token % 32);
}

class XMatcher final : public Matcher {
 public:
  XMatcher(xgrammar::GrammarMatcher matcher, int vocab_size, std::vector<std::uint32_t> barred)
      : matcher_(std::move(matcher)), vocab_size_(vocab_size), barred_(std::move(barred)) {}

  std::unique_ptr<Matcher> fork() const override {
    return std::make_unique<XMatcher>(matcher_.Fork(), vocab_size_, barred_);
  }

  Result<void> fill(std::span<std::uint32_t> mask) override {
    auto filled = bounded(kMatchTime, kMatchParts, [&] {
      auto words = static_cast<std::int64_t>(mask.size());
      DLTensor tensor{};
      tensor.data = mask.data();
      tensor.device = {kDLCPU, 0};
      tensor.ndim = 1;
      tensor.dtype = xgrammar::GetBitmaskDLType();
      tensor.shape = &words;
      return matcher_.FillNextTokenBitmask(&tensor);
    });
    if (!filled) return filled.error();
    for (std::size_t i = 0; i < mask.size(); ++i)
      mask[i] &= ~barred_[i];
    return {};
  }

  Result<void> accept(TokenId token) override {
    const auto refused = [token] {
      return wrong("token " + std::to_string(token) + " may not come here");
    };
    if (token < 0 || token >= vocab_size_ || allows(barred_, token)) return refused();
    auto accepted = bounded(kMatchTime, kMatchParts, [&] { return matcher_.AcceptToken(token); });
    if (!accepted) return accepted.error();
    if (!*accepted) return refused();
    return {};
  }

  void roll_back(std::uint32_t num_tokens) override {
    matcher_.Rollback(static_cast<int>(num_tokens));
  }

 private:
  xgrammar::GrammarMatcher matcher_;
  int vocab_size_;
  std::vector<std::uint32_t> barred_;  ///< bits of control tokens that the document does not name
};

class XGrammar final : public Grammar {
 public:
  XGrammar(xgrammar::CompiledGrammar compiled, std::vector<std::uint32_t> barred)
      : compiled_(std::move(compiled)), barred_(std::move(barred)) {}

  std::unique_ptr<Matcher> start(std::span<const TokenId> stop_token_ids) const override {
    const xgrammar::TokenizerInfo info = compiled_.GetTokenizerInfo();
    std::vector<int> stops = info.GetStopTokenIds();
    std::vector<std::uint32_t> barred = barred_;
    for (const TokenId token : stop_token_ids) {
      if (std::ranges::find(stops, token) == stops.end()) stops.push_back(token);
      barred[static_cast<std::size_t>(token) / 32] &= ~(1U << (token % 32));
    }
    return std::make_unique<XMatcher>(xgrammar::GrammarMatcher(compiled_, std::move(stops)),
                                      info.GetVocabSize(), std::move(barred));
  }
  std::size_t size_bytes() const override {
    return compiled_.MemorySizeBytes() + barred_.size() * sizeof(std::uint32_t);
  }

 private:
  xgrammar::CompiledGrammar compiled_;
  std::vector<std::uint32_t> barred_;
};

class XVocabulary final : public Vocabulary {
 public:
  XVocabulary(xgrammar::TokenizerInfo info, std::vector<std::pair<TokenId, std::string>> control)
      : info_(std::move(info)), control_(std::move(control)) {}

  int size() const override { return info_.GetVocabSize(); }

  Result<std::shared_ptr<const Grammar>> compile(const std::string& document,
                                                 const CompileLimits& limits) const override {
    const auto literals = literal_texts(document, limits);
    if (!literals) return literals.error();
    auto compiled = bounded(limits.cpu_time, limits.parts, [&] {
      // Without its caches and threads: the bound is this thread's, the cache is ours.
      xgrammar::GrammarCompiler compiler(info_, /*max_threads=*/1, /*cache_enabled=*/false);
      return std::make_shared<xgrammar::CompiledGrammar>(compiler.CompileStructuralTag(document));
    });
    if (!compiled) return compiled.error();
    return std::shared_ptr<const Grammar>(
        std::make_shared<XGrammar>(std::move(**compiled), barred_by(*literals)));
  }

 private:
  std::vector<std::uint32_t> barred_by(const std::vector<std::string>& literals) const {
    std::vector<std::uint32_t> barred(mask_words(size()), 0);
    for (const auto& [token, name] : control_) {
      const auto names = [&name = name](const std::string& text) {
        return text.find(name) != std::string::npos;
      };
      const bool is_named = !name.empty() && std::ranges::any_of(literals, names);
      if (!is_named) set_bit(barred, token);
    }
    // Bits past the last token say nothing, and read as none.
    if (size() % 32 != 0) barred.back() |= ~0U << (size() % 32);
    return barred;
  }

  xgrammar::TokenizerInfo info_;
  /// Tokens that no text has, with their names, if any; not the model's stop tokens.
  std::vector<std::pair<TokenId, std::string>> control_;
};

}  // namespace

bool is_built_in() {
  return true;
}

Result<std::shared_ptr<const Vocabulary>> make_vocabulary(const TokenTexts& texts, int vocab_size,
                                                          std::span<const TokenId> stop_token_ids) {
  for (const TokenId token : stop_token_ids) {
    if (token < 0 || token >= vocab_size)
      return wrong("stop token " + std::to_string(token) + " is outside the vocabulary of " +
                   std::to_string(vocab_size));
  }
  const std::size_t count = std::min(texts.size(), static_cast<std::size_t>(vocab_size));
  std::vector<std::string> words;
  words.reserve(count);
  for (std::size_t i = 0; i < count; ++i)
    words.emplace_back(texts.text(i));
  // Besides control tokens, what has no text is never text either.
  std::vector<std::pair<TokenId, std::string>> control;
  for (TokenId token = 0; token < vocab_size; ++token) {
    const auto index = static_cast<std::size_t>(token);
    const bool has_text = index < count && !words[index].empty();
    const bool is_control = std::ranges::binary_search(texts.control, token);
    const bool is_stop = std::ranges::find(stop_token_ids, token) != stop_token_ids.end();
    if ((!has_text || is_control) && !is_stop)
      control.emplace_back(token, has_text ? words[index] : std::string());
  }
  std::vector<std::int32_t> stops(stop_token_ids.begin(), stop_token_ids.end());
  try {
    xgrammar::TokenizerInfo info(words, xgrammar::VocabType::RAW, vocab_size, std::move(stops));
    return std::shared_ptr<const Vocabulary>(
        std::make_shared<XVocabulary>(std::move(info), std::move(control)));
  } catch (const std::exception& failure) {
    return wrong("the vocabulary: " + message_of(failure));
  }
}

}  // namespace thaw::grammar
