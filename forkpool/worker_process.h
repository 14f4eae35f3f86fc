#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>

#include "engine/base/result.h"
#include "engine/base/unique_fd.h"

namespace thaw::forkpool {

/// What a worker process inherits (forkpool/protocol.h). Borrowed descriptors.
struct SpawnOptions {
  std::string binary;  ///< run as `binary worker`
  int channel_fd = -1;
  int weights_fd = -1;
  int kv_pool_fd = -1;
  int arena_fd = -1;
};

/// A child process, held by pidfd so that its number can never be mistaken. Move-only; destruction
/// kills it and waits, so no zombie is left.
class WorkerProcess {
 public:
  static Result<WorkerProcess> spawn(const SpawnOptions& options);
  WorkerProcess(WorkerProcess&&) noexcept = default;
  WorkerProcess& operator=(WorkerProcess&&) = delete;
  ~WorkerProcess();

  pid_t pid() const { return pid_; }
  /// Readable once the process has exited.
  int pidfd() const { return pidfd_.get(); }
  void kill();

  /// How it ended, in words; nothing while it runs. After this the process is gone for certain and
  /// nothing of it touches memory any more.
  struct Exit {
    bool clean = false;  ///< status 0
    bool killed = false;  ///< by SIGKILL, or in a way that was not kept
    std::string text;  ///< "exited with status 1", "was killed by signal 9 (Killed)"
  };
  const std::optional<Exit>& try_wait();

 private:
  WorkerProcess(pid_t pid, UniqueFd pidfd) : pid_(pid), pidfd_(std::move(pidfd)) {}

  pid_t pid_ = -1;
  UniqueFd pidfd_;  // empty once moved from
  std::optional<Exit> exit_;
};

}  // namespace thaw::forkpool
