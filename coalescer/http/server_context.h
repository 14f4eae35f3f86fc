#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>

#include <boost/asio/thread_pool.hpp>

#include "coalescer/core/history.h"
#include "coalescer/http/api_keys.h"
#include "coalescer/http/cache_pins.h"
#include "coalescer/http/dispatcher.h"
#include "coalescer/http/metrics.h"
#include "coalescer/http/openapi.h"
#include "coalescer/http/origins.h"
#include "coalescer/http/response_service.h"
#include "coalescer/http/server.h"
#include "coalescer/http/session_service.h"
#include "coalescer/openai/answer.h"
#include "coalescer/openai/call.h"
#include "coalescer/openai/served_models.h"

namespace thaw::coalescer {

struct ServerContext;

/// Bytes of one body, counted against the server's limit from its first byte until it was parsed.
class BodyLease {
 public:
  explicit BodyLease(ServerContext* context) : context_(context) {}
  ~BodyLease();
  BodyLease(const BodyLease&) = delete;
  BodyLease& operator=(const BodyLease&) = delete;

  /// False where all bodies together have become too large.
  bool grow_to(std::uint64_t bytes);

 private:
  ServerContext* context_;
  std::uint64_t held_ = 0;
};

/// What all sessions share. Touched on the I/O thread only, except for `options`, `models` and
/// `history`, which the text threads read.
struct ServerContext {
  ServerContext(ServerOptions server_options, Backend* backend_in,
                std::shared_ptr<const ServedModels> models_in);

  ServerOptions options;
  Backend* backend;
  std::shared_ptr<const ServedModels> models;
  SteadyClock clock;
  Clock::TimePoint started = clock.now();
  ForkHistory history;
  Metrics metrics;
  SessionService sessions;
  CachePins cache_pins;
  ResponseService responses;
  Dispatcher dispatcher;
  KeyTable keys;
  boost::asio::thread_pool text_pool;  ///< its tasks run beside each other, in no order
  boost::asio::thread_pool file_pool{1};  ///< a later document or removal is not overtaken
  boost::asio::thread_pool admin_pool{1};  ///< ModelAdmin's calls, which take their time
  std::function<void()> schedule_flush;  ///< call after each Dispatcher::submit()
  bool draining = false;
  std::uint64_t body_bytes = 0;  ///< held by BodyLease
  std::mt19937_64 random;  ///< seeds of requests that bring none
  std::string nonce;  ///< part of response ids, new for each process
  OpenApiCache openapi;
  Origins origins;

  /// True once the backend has ever been ready: afterwards it answers for itself, since a worker
  /// that died comes back and its requests wait.
  bool backend_was_ready();
  /// Of the model's weights and what computes with them; empty until a worker has loaded it.
  const std::string& system_fingerprint(const ServedModel& model);
  /// What an answer of the model says of a request that came at `received`, now.
  AnswerMetadata metadata(const ServedModel& model, Clock::TimePoint received);
  /// The session's model, or the 409 of one that is not served any more, or with other weights.
  ApiResult<ServedModelPtr> model_of(const StoredSession& session) const;
  /// The model that a written session is of: the one with its weights, else the one of its name,
  /// else the first.
  ServedModelPtr model_of(const std::string& weights, const std::string& name) const;
  /// "chatcmpl-<process>-<number>"; of a response "resp_" and 32 hex digits.
  std::string next_response_id(ApiKind kind);
  /// The same with another word in front.
  std::string next_response_id(const char* prefix);
  /// Lets go of what is kept for a time that is over.
  void expire();
  std::string metrics_text();

 private:
  std::uint64_t next_response_ = 1;
  bool was_ready_ = false;
  std::optional<bool> has_slots_;  // several models may take turns
  std::map<std::string, std::string> fingerprints_;  // by model
};

/// The 503 of a server that does not answer calls any more, or that does not yet: because the model
/// is being loaded, or cannot be, for the reason that the backend has.
ApiError not_ready(ServerContext& context);

/// Longer bodies are parsed, rendered and tokenized by the text threads, and longer lines of tokens
/// worked on there.
inline constexpr std::size_t kInlineBodyBytes = 2048;
inline constexpr std::size_t kInlineTokens = 1024;

/// Counted where the client hung up; never sent.
inline constexpr int kClientClosed = 499;

}  // namespace thaw::coalescer
