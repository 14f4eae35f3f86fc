#include "engine/scheduler/masks.h"

#include <algorithm>
#include <chrono>

namespace thaw::scheduler {
namespace {

std::uint64_t nanoseconds_since(std::chrono::steady_clock::time_point start) {
  return static_cast<std::uint64_t>(
      std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now() - start)
          .count());
}

void run_job(const MaskJob& job) {
  Constraint& constraint = *job.constraint;
  const auto filled = constraint.matcher->fill(constraint.mask);
  constraint.error = filled ? std::nullopt : std::optional<Error>(filled.error());
  constraint.filled_at = job.num_tokens;
  if (!filled || job.barred_stops.empty()) return;
  std::vector<std::uint32_t> without = constraint.mask;
  for (const TokenId token : job.barred_stops)
    without[static_cast<std::size_t>(token) / 32] &= ~(1U << (token % 32));
  const bool goes_on =
      std::any_of(without.begin(), without.end(), [](std::uint32_t word) { return word != 0; });
  if (goes_on) constraint.mask.swap(without);
}

}  // namespace

void MaskFiller::start(std::span<const MaskJob> jobs) {
  if (jobs.empty()) return;
  if (!helper_.joinable())
    helper_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  {
    const std::lock_guard lock(mutex_);
    jobs_.insert(jobs_.end(), jobs.begin(), jobs.end());
  }
  begun_.notify_one();
}

void MaskFiller::finish() {
  std::unique_lock lock(mutex_);
  if (jobs_.empty()) return;
  const auto started = std::chrono::steady_clock::now();
  while (const MaskJob* next = next_job()) {
    const MaskJob job = *next;
    lock.unlock();
    run_job(job);
    lock.lock();
  }
  ended_.wait(lock, [this] { return num_running_ == 0; });  // a fill has a bound of its own
  num_filled_ += jobs_.size();
  jobs_.clear();
  next_ = 0;
  waited_ns_ += nanoseconds_since(started);
}

void MaskFiller::fill(const MaskJob& job) {
  const auto started = std::chrono::steady_clock::now();
  run_job(job);
  ++num_filled_;
  waited_ns_ += nanoseconds_since(started);
}

const MaskJob* MaskFiller::next_job() {
  return next_ < jobs_.size() ? &jobs_[next_++] : nullptr;
}

void MaskFiller::run(const std::stop_token& stop) {
  std::unique_lock lock(mutex_);
  while (begun_.wait(lock, stop, [this] { return next_ < jobs_.size(); })) {
    const MaskJob job = *next_job();
    ++num_running_;
    lock.unlock();
    run_job(job);
    lock.lock();
    if (--num_running_ == 0) ended_.notify_one();
  }
}

}  // namespace thaw::scheduler
