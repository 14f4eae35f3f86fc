#pragma once

#include <thread>

#include "engine/base/result.h"

namespace thaw::kvsnap {

/// Takes the pages of shared memory ahead of its first use and has the kernel join them into huge
/// ones where it can, in a thread of low priority. The first copy into cold memory otherwise costs
/// some 0.7 ms a MiB in page faults, and each further process's first touch another 0.3; with huge
/// pages it costs nearly nothing (measured on Linux 6.18). Contents never change, so others may use
/// the memory meanwhile. Move-only; destruction stops it after the step it is in.
class PageWarmer {
 public:
  PageWarmer() = default;
  /// Warms the whole file behind `fd`, which may be closed afterwards. Pages it takes stay taken.
  static Result<PageWarmer> start(int fd);

  /// Waits until everything is warm.
  void wait();

 private:
  std::jthread thread_;
};

}  // namespace thaw::kvsnap
