#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/generate.h"

namespace thaw::coalescer {

struct SharedWith {
  RequestId request = 0;
  std::uint32_t tokens = 0;  ///< length of the common prefix
};

/// Where a request parted from the one it has most in common with.
struct Divergence {
  RequestId other = 0;
  std::uint32_t position = 0;  ///< index of the first token that differs
  std::string text_before;  ///< the last shared text
  std::string text_here;  ///< what this request has from there
  std::string text_other;  ///< what the other one has
  bool other_root = false;  ///< the tokens agree, but salt or adapter differ
  std::uint32_t identical_tokens_after =
      0;  ///< longest run that stands in both prompts behind the divergence
  std::string advice;  ///< empty where there is none
};

/// Why a request shared what it did.
struct Explanation {
  RequestId request = 0;
  std::uint32_t prompt_tokens = 0;
  std::vector<SharedWith> shared_with;  ///< longest first, at most 8
  std::optional<Divergence>
      parted;  ///< from the nearest other request; nullopt where there is none
};

/// The prompts of the last requests, kept to explain sharing. Bounded by `capacity` requests and
/// `max_tokens` tokens. Thread-safe.
class ForkHistory {
 public:
  /// Text of tokens of `model` (GenerateRequest::model). Called under the history's lock.
  using Detokenize = std::function<std::string(const std::string& model, std::span<const TokenId>)>;

  ForkHistory(std::size_t capacity, std::size_t max_tokens, Detokenize detokenize);

  /// Keeps a window's prompts; call before the window is submitted. Returns the window's number.
  std::uint64_t record(std::span<const GenerateRequest> window);

  /// Against the request's window and those before it; nullopt once it has been forgotten.
  std::optional<Explanation> explain(RequestId request) const;

  struct WindowExplanation {
    std::uint64_t window = 0;
    std::vector<Explanation> requests;
  };
  /// Newest window first, at most `count`.
  std::vector<WindowExplanation> recent(std::size_t count) const;

 private:
  struct Entry {
    std::uint64_t window = 0;
    RequestId request = 0;
    std::string key;
    std::string tenant;
    std::string model;
    std::vector<TokenId> prompt;
  };
  Explanation explain_locked(std::size_t index) const;

  std::size_t capacity_;
  std::size_t max_tokens_;
  Detokenize detokenize_;
  mutable std::mutex mutex_;
  std::deque<Entry> entries_;  // guarded by mutex_, oldest first
  std::size_t total_tokens_ = 0;  // guarded by mutex_
  std::uint64_t next_window_ = 1;  // guarded by mutex_
};

}  // namespace thaw::coalescer
