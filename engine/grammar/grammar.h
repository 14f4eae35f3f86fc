#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/token_texts.h"
#include "engine/base/types.h"

namespace thaw::grammar {

/// Words of a mask: token t is bit t % 32 of word t / 32; set where the token may come.
constexpr std::size_t mask_words(int vocab_size) {
  return (static_cast<std::size_t>(vocab_size) + 31) / 32;
}
inline bool allows(std::span<const std::uint32_t> mask, TokenId token) {
  return (mask[static_cast<std::size_t>(token) / 32] >> (token % 32) & 1U) != 0;
}

/// False in a build without the grammar library, where make_vocabulary() fails.
bool is_built_in();

/// Where one text is in its grammar. Throws nothing; after an error of accept() or fill() that says
/// that it took too long, it is of no use any more. One thread at a time.
class Matcher {
 public:
  virtual ~Matcher() = default;
  /// A second text that has begun like this one.
  virtual std::unique_ptr<Matcher> fork() const = 0;
  /// Which tokens may come next: overwrites all of `mask`, mask_words() of the vocabulary. A stop
  /// token may come exactly where the text can end, a control token only where the document names
  /// it. Errors: kInvalidArgument where that takes longer than a step may wait.
  virtual Result<void> fill(std::span<std::uint32_t> mask) = 0;
  /// Goes on by one token. Errors: kInvalidArgument where fill() would not allow it (nothing is
  /// changed then), or as above.
  virtual Result<void> accept(TokenId token) = 0;
  /// Takes the last tokens back. REQUIRES: as many were accepted.
  virtual void roll_back(std::uint32_t num_tokens) = 0;
};

/// A compiled document. Immutable and thread-safe, and so are the matchers among themselves.
class Grammar {
 public:
  virtual ~Grammar() = default;
  /// The beginning of a text that ends with one of `stop_token_ids`, besides the vocabulary's.
  virtual std::unique_ptr<Matcher> start(std::span<const TokenId> stop_token_ids) const = 0;
  virtual std::size_t size_bytes() const = 0;
};

/// What a compilation may take. Past it a document is an error: a schema of some hundred bytes can
/// ask for any amount of work.
struct CompileLimits {
  std::size_t document_bytes = std::size_t{1} << 20;
  int depth = 100;  ///< of the document's JSON
  std::chrono::milliseconds cpu_time{5000};
  std::int64_t parts = 4'000'000;  ///< of the grammar and its automata
};

/// A vocabulary prepared for grammars. Immutable and thread-safe.
class Vocabulary {
 public:
  virtual ~Vocabulary() = default;
  virtual int size() const = 0;
  /// Compiles a document: one JSON object {"type": "structural_tag", "format": {...}} as xgrammar
  /// takes it (docs/structured.md). JSON of a schema has one form, ", " and ": " between its parts,
  /// unless the format says max_whitespace_cnt. Errors: kInvalidArgument, naming what is wrong with
  /// the document, or which limit it passes.
  virtual Result<std::shared_ptr<const Grammar>> compile(const std::string& document,
                                                         const CompileLimits& limits) const = 0;
};

/// Of a model with `vocab_size` logits; tokens past `texts` are never allowed. `stop_token_ids`:
/// the model's. Errors: kUnsupported where the build has no grammar library; kInvalidArgument for
/// ids outside the vocabulary.
Result<std::shared_ptr<const Vocabulary>> make_vocabulary(const TokenTexts& texts, int vocab_size,
                                                          std::span<const TokenId> stop_token_ids);

}  // namespace thaw::grammar
