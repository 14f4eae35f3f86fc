#pragma once

#include <functional>
#include <thread>
#include <vector>

#include "engine/base/unique_fd.h"

namespace thaw::forkpool::worker {

/// Ends this process at once when a follower ends: its kernels would wait for what never comes, and
/// the pool waits for nothing but our end. By SIGKILL where none of them said why: they were
/// killed, as far as is known, and the pool shall see that. Else with status 1.
class RankWatch {
 public:
  /// `sockets`: of the followers' links, by rank, which outlive it. `before_end` is called on a
  /// thread of its own, in the one case that the process ends.
  RankWatch(std::vector<int> sockets, std::function<void()> before_end);
  ~RankWatch();
  RankWatch(const RankWatch&) = delete;
  RankWatch& operator=(const RankWatch&) = delete;

 private:
  void run() const;

  const std::vector<int> sockets_;
  const std::function<void()> before_end_;
  UniqueFd wake_;
  std::jthread thread_;  ///< last: it uses all of the above
};

}  // namespace thaw::forkpool::worker
