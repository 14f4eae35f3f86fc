#include "engine/base/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace thaw {
namespace {

constexpr int kSpins = 20000;  // some 50 microseconds of _mm_pause

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

}  // namespace

ThreadPool::ThreadPool(int num_threads) {
  for (int i = 1; i < num_threads; ++i)
    helpers_.emplace_back([this] { helper_loop(); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_release);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& helper : helpers_)
    helper.join();
}

void ThreadPool::parallel_for(int num_tasks, const std::function<void(int)>& body) {
  if (helpers_.empty() || num_tasks <= 1) {
    for (int task = 0; task < num_tasks; ++task)
      body(task);
    return;
  }
  body_ = &body;
  num_tasks_ = num_tasks;
  next_task_.store(0, std::memory_order_relaxed);
  busy_helpers_.store(static_cast<int>(helpers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  run_tasks();
  // Every helper must have left run_tasks before the next job may overwrite body_.
  for (int spins = 0; busy_helpers_.load(std::memory_order_acquire) != 0; ++spins) {
    if (spins < kSpins) {
      relax();
    } else {
      std::this_thread::yield();  // the helper may have lost its core
    }
  }
}

void ThreadPool::run_tasks() {
  for (int task = next_task_.fetch_add(1, std::memory_order_relaxed); task < num_tasks_;
       task = next_task_.fetch_add(1, std::memory_order_relaxed)) {
    (*body_)(task);
  }
}

void ThreadPool::helper_loop() {
  std::uint32_t seen = 0;
  while (true) {
    for (int spins = 0; spins < kSpins && generation_.load(std::memory_order_acquire) == seen;
         ++spins) {
      relax();
    }
    generation_.wait(seen, std::memory_order_acquire);
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_acquire)) return;
    run_tasks();
    busy_helpers_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace thaw
