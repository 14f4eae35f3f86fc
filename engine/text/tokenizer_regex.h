#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "engine/text/tokenizer_spec.h"

namespace thaw::text {

/// Cuts text by any regular expressions, through PCRE2 (compiled to machine code where PCRE2 can).
/// For the ones that models commonly have there are hand-written rules, which are several times
/// faster (tokenizer_split.h). Immutable after creation and thread-safe.
class RegexSplitter {
 public:
  /// What one thread needs besides.
  class Scratch {
   public:
    Scratch();
    ~Scratch();
    Scratch(Scratch&&) noexcept;
    Scratch& operator=(Scratch&&) noexcept;

   private:
    friend class RegexSplitter;
    struct Impl;
    std::unique_ptr<Impl> impl_;
  };

  /// Errors: kUnsupported for what PCRE2 does not take, with its message and the position.
  static Result<std::unique_ptr<RegexSplitter>> create(std::span<const SplitRegex> steps);
  ~RegexSplitter();

  /// The pieces of a text, in order, each not empty; every step cuts the pieces of the one before,
  /// seeing nothing around them. Where a match takes more than a fixed number of steps, what is
  /// left of the piece stays whole. The pieces are the scratch's until its next use.
  std::span<const std::string_view> split(std::string_view text, Scratch& scratch) const;

 private:
  struct Step;
  RegexSplitter();
  static void cut(const Step& step, std::string_view piece, Scratch::Impl& scratch);

  std::vector<Step> steps_;
};

}  // namespace thaw::text
