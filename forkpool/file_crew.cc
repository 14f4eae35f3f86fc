#include "forkpool/file_crew.h"

#include <utility>

namespace thaw::forkpool {
namespace {

constexpr std::size_t kMaxWaiting = 1024;
constexpr int kCrew = 2;  // one may write while another reads what a request waits for
constexpr int kThreadsEach = 2;  // a disk is filled by few; the rest of the cores compute

}  // namespace

FileCrew::~FileCrew() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
    jobs_.clear();
  }
  changed_.notify_all();
  for (std::thread& thread : threads_)
    thread.join();
}

bool FileCrew::run(Work work, Loop::Task done) {
  {
    const std::scoped_lock lock(mutex_);
    if (jobs_.size() >= kMaxWaiting) return false;
    jobs_.push_back({std::move(work), std::move(done)});
  }
  while (threads_.size() < kCrew)
    threads_.emplace_back([this] { work_off(); });
  changed_.notify_one();
  return true;
}

void FileCrew::work_off() {
  ThreadPool threads(kThreadsEach);
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
    if (stopping_) return;
    Job job = std::move(jobs_.front());
    jobs_.pop_front();
    lock.unlock();
    job.work(threads);
    loop_.post(std::move(job.done));
    lock.lock();
  }
}

}  // namespace thaw::forkpool
