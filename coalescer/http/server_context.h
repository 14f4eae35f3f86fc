#pragma once

#include <cstdint>
#include <functional>
#include <random>
#include <string>

#include <boost/asio/thread_pool.hpp>

#include "coalescer/core/history.h"
#include "coalescer/http/api_keys.h"
#include "coalescer/http/dispatcher.h"
#include "coalescer/http/metrics.h"
#include "coalescer/http/server.h"
#include "coalescer/http/session_service.h"
#include "coalescer/openai/call.h"
#include "coalescer/openai/text_codec.h"

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

/// What all sessions share. Touched on the I/O thread only, except for `options`, `codec` and
/// `history`, which the text threads read.
struct ServerContext {
  ServerContext(ServerOptions server_options, Backend* backend_in, const TextCodec* codec_in);

  ServerOptions options;
  Backend* backend;
  const TextCodec* codec;
  SteadyClock clock;
  ForkHistory history;
  Metrics metrics;
  SessionService sessions;
  Dispatcher dispatcher;
  KeyTable keys;
  boost::asio::thread_pool text_pool;
  std::function<void()> schedule_flush;  ///< call after each Dispatcher::submit()
  bool draining = false;
  std::int64_t created = unix_seconds();  ///< of the served models: when the server started
  std::uint64_t body_bytes = 0;  ///< held by BodyLease
  std::mt19937_64 random;  ///< seeds of requests that bring none
  std::string nonce;  ///< part of response ids, new for each process

  /// True once the backend has ever been ready: afterwards it answers for itself, since a worker
  /// that died comes back and its requests wait.
  bool backend_was_ready();
  const std::string& system_fingerprint();
  /// The name to show for a requested model; nullptr where it is not served. Empty: the first one.
  const std::string* served_name(const std::string& requested) const;
  /// The 404 for a name that is not served.
  ApiError unknown_model(const std::string& requested) const;
  /// "chatcmpl-<process>-<number>".
  std::string next_response_id(ApiKind kind);
  std::string metrics_text();
  static std::int64_t unix_seconds();

 private:
  std::uint64_t next_response_ = 1;
  bool was_ready_ = false;
  std::string system_fingerprint_;
};

/// The 503 of a server that does not answer calls yet, or any more.
ApiError not_ready(bool draining);

/// Counted where the client hung up; never sent.
inline constexpr int kClientClosed = 499;

}  // namespace thaw::coalescer
