#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "cli/settings.h"
#include "engine/base/result.h"
#include "engine/base/unique_fd.h"

namespace thaw::cli {

/// A ServeHost inside of a process that is not ours, such as Python's: on threads of its own, which
/// get none of the process's signals, and with a descriptor table of its own. The process has one
/// descriptor of it, the control socket; so what it opens, closes or inherits by fork() touches no
/// worker's channel and no connection, and a descriptor that it closed is closed. Thread-safe.
class EmbeddedHost {
 public:
  /// Loads the model, starts the workers and waits until one serves (--boot-timeout). Keys,
  /// operators, host and port of the settings mean nothing here: whoever holds the host may do all.
  static Result<std::unique_ptr<EmbeddedHost>> start(ServeSettings settings,
                                                     const ModelPaths& paths,
                                                     std::string worker_binary);
  /// close() without patience.
  ~EmbeddedHost();
  EmbeddedHost(const EmbeddedHost&) = delete;
  EmbeddedHost& operator=(const EmbeddedHost&) = delete;

  /// The default model's name.
  const std::string& model_name() const;
  /// A connection on which HTTP/1.1 is spoken (coalescer::Server::connect()). Waits a few
  /// milliseconds at most. Errors: kUnavailable once it was closed, kDeadlineExceeded.
  Result<UniqueFd> connect();
  /// Lets running requests finish until the deadline, cuts the rest, ends the workers, and waits
  /// for all that. The second time it does nothing.
  void close(std::chrono::milliseconds drain_timeout);

  /// In a child that was forked off the process: forgets the host without ending anything, and
  /// without waiting for anything. `host` must not be used by other threads of the child.
  static void abandon(std::unique_ptr<EmbeddedHost> host);

 private:
  struct Impl;
  explicit EmbeddedHost(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace thaw::cli
