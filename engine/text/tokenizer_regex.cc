#include "engine/text/tokenizer_regex.h"

#include <cstdint>
#include <string>
#include <utility>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

namespace thaw::text {
namespace {

// Enough for any word; a match that needs more belongs to a pattern that backtracks without end.
constexpr std::uint32_t kMatchLimit = 1'000'000;
constexpr std::size_t kJitStackBytes = std::size_t{512} << 10;
constexpr std::size_t kMaxPatternBytes = 16384;

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatch {
  void operator()(pcre2_match_data* match) const { pcre2_match_data_free(match); }
};
struct FreeContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};
struct FreeStack {
  void operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
};

}  // namespace

struct RegexSplitter::Step {
  std::unique_ptr<pcre2_code, FreeCode> code;
  bool keep_matches = true;
  bool keep_gaps = true;
};

struct RegexSplitter::Scratch::Impl {
  std::unique_ptr<pcre2_match_data, FreeMatch> match{pcre2_match_data_create(1, nullptr)};
  std::unique_ptr<pcre2_match_context, FreeContext> context{pcre2_match_context_create(nullptr)};
  std::unique_ptr<pcre2_jit_stack, FreeStack> stack{
      pcre2_jit_stack_create(32768, kJitStackBytes, nullptr)};
  std::vector<std::string_view> pieces;
  std::vector<std::string_view> next;
};

RegexSplitter::Scratch::Scratch() = default;
RegexSplitter::Scratch::~Scratch() = default;
RegexSplitter::Scratch::Scratch(Scratch&&) noexcept = default;
RegexSplitter::Scratch& RegexSplitter::Scratch::operator=(Scratch&&) noexcept = default;

RegexSplitter::RegexSplitter() = default;
RegexSplitter::~RegexSplitter() = default;

Result<std::unique_ptr<RegexSplitter>> RegexSplitter::create(std::span<const SplitRegex> steps) {
  std::unique_ptr<RegexSplitter> splitter(new RegexSplitter());
  for (const SplitRegex& step : steps) {
    const std::string shown = "\"" + step.pattern.substr(0, 200) + "\"";
    if (step.pattern.empty() || step.pattern.size() > kMaxPatternBytes) {
      return make_error(Errc::kUnsupported, "tokenizer: a pre-tokenizer's regular expression has " +
                                                std::to_string(step.pattern.size()) +
                                                " bytes, supported are 1 to " +
                                                std::to_string(kMaxPatternBytes));
    }
    int error = 0;
    PCRE2_SIZE offset = 0;
    // Unicode classes, as in Hugging Face; text may hold bytes that are not UTF-8.
    std::unique_ptr<pcre2_code, FreeCode> code(
        pcre2_compile(reinterpret_cast<PCRE2_SPTR>(step.pattern.data()), step.pattern.size(),
                      PCRE2_UTF | PCRE2_UCP | PCRE2_MATCH_INVALID_UTF | PCRE2_NEVER_BACKSLASH_C,
                      &error, &offset, nullptr));
    if (code == nullptr) {
      PCRE2_UCHAR message[256] = {};
      pcre2_get_error_message(error, message, sizeof(message));
      return make_error(Errc::kUnsupported,
                        "tokenizer: the pre-tokenizer's regular expression " + shown +
                            " is not supported: " + reinterpret_cast<const char*>(message) +
                            " at byte " + std::to_string(offset));
    }
    pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // without it the interpreter runs
    splitter->steps_.push_back({std::move(code), step.keep_matches, step.keep_gaps});
  }
  return splitter;
}

void RegexSplitter::cut(const Step& step, std::string_view piece, Scratch::Impl& scratch) {
  const auto emit = [&scratch, piece](bool keep, std::size_t begin, std::size_t end) {
    if (keep && begin < end) scratch.next.push_back(piece.substr(begin, end - begin));
  };
  std::size_t at = 0;
  while (at < piece.size()) {
    const int found =
        pcre2_match(step.code.get(), reinterpret_cast<PCRE2_SPTR>(piece.data()), piece.size(), at,
                    PCRE2_NOTEMPTY, scratch.match.get(), scratch.context.get());
    if (found < 0) {
      // No further match, or a limit was met: then the rest is one piece, whatever is kept.
      emit(step.keep_gaps || found != PCRE2_ERROR_NOMATCH, at, piece.size());
      return;
    }
    const PCRE2_SIZE* range = pcre2_get_ovector_pointer(scratch.match.get());
    if (range[0] < at || range[1] <= range[0]) {  // \K can do that
      emit(true, at, piece.size());
      return;
    }
    emit(step.keep_gaps, at, range[0]);
    emit(step.keep_matches, range[0], range[1]);
    at = range[1];
  }
}

std::span<const std::string_view> RegexSplitter::split(std::string_view text,
                                                       Scratch& scratch) const {
  if (scratch.impl_ == nullptr) {
    scratch.impl_ = std::make_unique<Scratch::Impl>();
    pcre2_set_match_limit(scratch.impl_->context.get(), kMatchLimit);
    pcre2_jit_stack_assign(scratch.impl_->context.get(), nullptr, scratch.impl_->stack.get());
  }
  Scratch::Impl& impl = *scratch.impl_;
  impl.pieces.clear();
  if (!text.empty()) impl.pieces.push_back(text);
  for (const Step& step : steps_) {
    impl.next.clear();
    for (const std::string_view piece : impl.pieces) {
      cut(step, piece, impl);
    }
    impl.pieces.swap(impl.next);
  }
  return impl.pieces;
}

}  // namespace thaw::text
