#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace thaw {

/// Fork-join threads for compute: the caller works too, so N threads are N-1 helpers. Helpers spin
/// for a moment after a job (a decode step has hundreds of short ones) and then sleep.
/// One caller at a time; not reentrant.
class ThreadPool {
 public:
  /// REQUIRES: num_threads >= 1.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const noexcept { return static_cast<int>(helpers_.size()) + 1; }

  /// Calls body(task) for task = 0 .. num_tasks-1, each exactly once, on any thread and in any
  /// order; returns when all have returned. `body` must not throw. What a task computes must not
  /// depend on which thread runs it.
  void parallel_for(int num_tasks, const std::function<void(int task)>& body);

 private:
  void helper_loop();
  void run_tasks();

  std::vector<std::thread> helpers_;
  const std::function<void(int)>* body_ = nullptr;
  int num_tasks_ = 0;
  std::atomic<int> next_task_{0};
  std::atomic<int> busy_helpers_{0};
  std::atomic<std::uint32_t> generation_{0};  ///< changes for each job and at the end
  std::atomic<bool> stopping_{false};
};

}  // namespace thaw
