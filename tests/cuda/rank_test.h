#pragma once

#include <sys/types.h>

#include <vector>

#include "engine/base/unique_fd.h"
#include "tests/cuda/gpu_test.h"

namespace thaw::cuda {

/// A test whose body runs on every rank of a group at once, each rank a process: the first is the
/// test's own, the others run this binary with a filter for the same test. Rank r's device is r
/// modulo the devices there are, so that one device serves, too: its processes then take turns. A
/// failure on any rank fails the test. No wait is longer than a minute.
class RankTest : public GpuTest {
 public:
  ~RankTest() override;

 protected:
  /// Starts the others. First in the body.
  void start(int size);
  void TearDown() override;

  int rank() const { return rank_; }
  int size() const { return size_; }
  int device() const { return rank_ % device_count(); }
  /// Whether ranks run at once, and waits between them are short.
  bool have_devices_each() const { return size_ <= device_count(); }

  /// Every rank's descriptor, by rank.
  std::vector<UniqueFd> share(const UniqueFd& own);
  /// Waits until every rank is here.
  void meet();
  /// Rank 0: waits until the process of rank `rank` has ended and no longer counts.
  void await_end(int rank);

 private:
  struct Peer {
    pid_t pid = -1;  ///< on rank 0
    UniqueFd socket;
  };
  int rank_ = 0;
  int size_ = 1;
  std::vector<Peer> peers_;  ///< on rank 0 by rank - 1; on others rank 0 alone
};

}  // namespace thaw::cuda
