#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cli/settings.h"
#include "coalescer/http/server.h"
#include "engine/base/pool_status.h"
#include "engine/base/result.h"

namespace thaw::cli {

struct ServeHostOptions {
  std::string worker_binary;  ///< the `thaw` binary; empty: this process's own
  bool listens = true;  ///< false: no port, only connect()
  /// Gets lines for people; null: nobody wants them.
  std::function<void(const std::string& line)> say;
};

/// All of a server, from settings to answers: models, pool of workers, coalescer, HTTP. `thaw
/// serve` is one that listens; inside another process one is reached by connect(). The thread that
/// starts it should block the signals that its threads must not get. Thread-safe.
class ServeHost {
 public:
  /// Loads the model and starts the workers, but does not wait for them. `paths` is where models
  /// are found. Errors are the user's to read: one line each, which name the flag.
  static Result<std::unique_ptr<ServeHost>> start(ServeSettings settings, const ModelPaths& paths,
                                                  ServeHostOptions options);
  /// REQUIRES: run() does not run.
  ~ServeHost();
  ServeHost(const ServeHost&) = delete;
  ServeHost& operator=(const ServeHost&) = delete;

  /// What clients call the models, one name of each; the first is the default one.
  const std::vector<std::string>& model_names() const;
  /// 0 where it does not listen.
  std::uint16_t port() const;
  /// One end of a connection to it (coalescer::Server::connect()).
  Result<UniqueFd> connect();

  /// Waits until a worker serves. Errors: kUnavailable with the reason where none can,
  /// kDeadlineExceeded.
  Result<void> wait_ready(std::chrono::milliseconds deadline) const;

  /// Serves until stop(), then ends the workers. Call it once, from one thread.
  void run();
  /// No new requests; running ones finish or are cut at the deadline; then run() returns.
  void stop(std::chrono::milliseconds drain_timeout);

 private:
  struct Impl;
  explicit ServeHost(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace thaw::cli
