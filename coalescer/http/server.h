#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "coalescer/core/backend.h"
#include "coalescer/core/response_store.h"
#include "coalescer/core/session_store.h"
#include "coalescer/openai/served_models.h"
#include "engine/base/result.h"
#include "engine/base/unique_fd.h"
#include "engine/text/chat_template.h"
#include "engine/text/tokenizer.h"

namespace thaw::coalescer {

class ModelAdmin;

/// An API key and the tenant it names.
struct ApiKey {
  std::string key;
  std::string tenant;
};

struct ServerOptions {
  bool listens = true;  ///< false: only those who connect() are served
  std::string host = "127.0.0.1";
  std::uint16_t port = 8000;  ///< 0: any free one
  // Of the one model of a server that is created with a codec; a table of models has its own.
  std::vector<std::string> served_model_names;  ///< at least one; the first is shown
  std::uint32_t max_model_len = 0;
  ModelDescription model;
  std::vector<ApiKey> api_keys;  ///< empty: no key needed
  std::vector<std::string> allowed_origins;  ///< of web pages (coalescer/http/origins.h)
  ModelAdmin* admin = nullptr;  ///< changes what is served; null: nobody may
  std::vector<std::string> admin_tenants;  ///< with keys, whose may; without, everybody's
  std::chrono::microseconds window{2000};
  std::uint64_t max_body_bytes = 32U << 20;
  std::uint32_t max_connections = 4096;
  std::uint32_t max_num_seqs = 64;  ///< bounds n
  std::uint32_t max_queued_requests = 1024;  ///< beyond it 429
  std::chrono::milliseconds idle_timeout{75000};
  std::chrono::milliseconds header_timeout{20000};
  std::chrono::milliseconds write_timeout{
      30000};  ///< a client that reads nothing for that long is dropped
  std::uint32_t num_text_threads = 1;  ///< tokenize long prompts off the I/O thread
  SessionLimits session_limits;
  ResponseLimits response_limits;  ///< of what /v1/responses stores
  std::uint64_t session_kept_bytes = 128ULL << 20;  ///< KV kept for sessions; 0: none is
  std::uint64_t prompt_cache_bytes = 64ULL << 20;  ///< KV kept for prompts that ask for it
  std::string session_dir;  ///< sessions are written there; empty: nowhere
  bool eager_tools = false;  ///< a reply to anything but a tool's result must be a call
  std::uint32_t tensor_parallel = 1;  ///< ranks of each worker, as /admin/pool says
  bool has_grammars = true;  ///< the backend can hold replies to a form
  std::string version;
};

/// The HTTP front: sessions, window, trie, plan, SSE. One I/O thread, plus text threads.
class Server {
 public:
  /// `chat_template` may be null (a model without one): chat requests are then refused.
  /// All pointers must outlive the server.
  static Result<std::unique_ptr<Server>> create(ServerOptions options, Backend* backend,
                                                const text::Tokenizer* tokenizer,
                                                const text::ChatTemplate* chat_template);
  /// The same with any codec.
  static Result<std::unique_ptr<Server>> create(ServerOptions options, Backend* backend,
                                                std::shared_ptr<const TextCodec> codec);
  /// Several models, which may come and go while it runs; at least one is there.
  static Result<std::unique_ptr<Server>> create(ServerOptions options, Backend* backend,
                                                std::shared_ptr<const ServedModels> models);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  /// The port it listens on (bound in create()); 0 where it does not listen.
  std::uint16_t port() const;

  /// Any thread: one end of a socketpair, whose other end is served as a connection from when run()
  /// runs. What is served does not differ from what comes over TCP; a server that drains or has
  /// stopped closes it. Errors: the system's.
  Result<UniqueFd> connect();

  /// Serves until stop(); call from one thread.
  void run();

  /// Any thread. No new connections or requests (503),
  /// running ones finish or are cut at the deadline; then run() returns.
  void stop(std::chrono::milliseconds drain_timeout);

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace thaw::coalescer
