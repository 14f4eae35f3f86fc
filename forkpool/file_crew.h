#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/base/thread_pool.h"
#include "forkpool/loop.h"

namespace thaw::forkpool {

/// Threads for work on files, so that the loop waits for no disk. run() belongs to the loop's
/// thread. The destructor waits for what has begun, and drops what has not.
class FileCrew {
 public:
  using Work = std::function<void(ThreadPool& threads)>;

  explicit FileCrew(Loop& loop) : loop_(loop) {}
  ~FileCrew();
  FileCrew(const FileCrew&) = delete;
  FileCrew& operator=(const FileCrew&) = delete;

  /// Does `work` on a thread of its own, then `done` on the loop's. False: too much waits already,
  /// neither will be called.
  bool run(Work work, Loop::Task done);

 private:
  struct Job {
    Work work;
    Loop::Task done;
  };
  void work_off();

  Loop& loop_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Job> jobs_;  // guarded by mutex_
  bool stopping_ = false;  // guarded by mutex_
  std::vector<std::thread> threads_;  // started with the first job
};

}  // namespace thaw::forkpool
