#pragma once

#include "forkpool/protocol.h"

namespace thaw::forkpool {

/// What a worker process inherits.
struct WorkerFds {
  int channel = kChannelFd;
  int weights = kWeightsFd;
  int kv_pool = kKvPoolFd;
  int arena = kArenaFd;  ///< closed, or of size 0: no snapshots
};

/// The process behind `thaw worker`: reads Init and Adopt, answers Ready, and then serves frames
/// until Shutdown or until the pool's end of the channel closes, so that no orphan stays. Ignores
/// SIGINT and SIGTERM: a terminal sends them to the whole group, and the pool decides when its
/// workers end. Takes over the descriptors. Returns the exit code: 0, or 1 after a Fatal frame.
int run_worker(const WorkerFds& fds = {});

}  // namespace thaw::forkpool
