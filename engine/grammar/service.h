#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <unordered_map>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/token_texts.h"
#include "engine/grammar/grammar.h"

namespace thaw::grammar {

struct ServiceOptions {
  CompileLimits limits;
  std::size_t cache_bytes = std::size_t{64} << 20;  ///< of compiled grammars, least used out first
  std::size_t max_waiting = 256;  ///< preparations; one more is refused
};

/// What a request asks for: matchers of one document, each after the tokens that its text already
/// has.
struct Order {
  std::string document;
  std::vector<TokenId> stop_token_ids;  ///< besides the model's
  std::vector<std::vector<TokenId>> generated;  ///< one matcher for each
};

struct ServiceStats {
  std::uint64_t compiled = 0;  ///< documents, refused ones too
  std::uint64_t cache_hits = 0;
  std::uint64_t compile_us = 0;
  std::uint64_t cached_bytes = 0;
};

/// An order under way. Shared by the service and who ordered.
class Preparation {
 public:
  using Matchers = std::vector<std::unique_ptr<Matcher>>;

 private:
  friend class Service;
  Order order_;
  std::optional<Result<Matchers>> result_;  ///< under the service's mutex
};

/// Compiles documents on a thread of its own, so that nobody else waits, and keeps what it
/// compiled. A document that does not compile is remembered too. Thread-safe.
class Service {
 public:
  /// As make_vocabulary(), which the thread calls when the first order comes: what is wrong with it
  /// is then the answer to every order.
  Service(std::shared_ptr<const TokenTexts> texts, int vocab_size,
          std::vector<TokenId> stop_token_ids, const ServiceOptions& options = {});
  /// Waits for the compilation at hand.
  ~Service();
  Service(const Service&) = delete;
  Service& operator=(const Service&) = delete;

  /// Errors: kResourceExhausted where too many wait.
  Result<std::shared_ptr<Preparation>> prepare(Order order);
  /// Its matchers, once. Nothing while it is under way. Errors: those of the document; a text that
  /// its grammar does not allow (kInvalidArgument).
  std::optional<Result<Preparation::Matchers>> take(Preparation& preparation);
  /// Until some preparation is done, at most so long.
  void wait(std::chrono::milliseconds timeout);

  ServiceStats stats() const;

 private:
  using Compiled = Result<std::shared_ptr<const Grammar>>;
  struct Entry {
    std::string document;
    Compiled grammar;
    std::size_t bytes;
  };

  void run(const std::stop_token& stop);
  Result<Preparation::Matchers> serve(const Order& order);
  Compiled find_or_compile(const std::string& document);
  void keep(const std::string& document, const Compiled& compiled);

  const std::shared_ptr<const TokenTexts> texts_;
  const int vocab_size_;
  const std::vector<TokenId> stop_token_ids_;
  const ServiceOptions options_;
  // The thread's own.
  std::optional<Result<std::shared_ptr<const Vocabulary>>> vocabulary_;
  std::list<Entry> cache_;  ///< last used first
  std::unordered_map<std::string_view, std::list<Entry>::iterator> by_document_;

  mutable std::mutex mutex_;
  std::condition_variable_any ordered_;
  std::condition_variable done_;
  std::deque<std::shared_ptr<Preparation>> queue_;
  std::uint64_t num_done_ = 0;
  std::uint64_t num_seen_ = 0;  ///< of them, by wait()
  ServiceStats stats_;
  std::jthread thread_;  ///< last: it uses the rest
};

}  // namespace thaw::grammar
