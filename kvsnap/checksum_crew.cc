#include "kvsnap/checksum_crew.h"

#include <sys/prctl.h>

#include <chrono>
#include <utility>

#include "engine/base/crc32c.h"

namespace thaw::kvsnap {
namespace {

constexpr std::chrono::microseconds kSliceNap{15};  // a slice takes 20 to 50

}  // namespace

ChecksumCrew::ChecksumCrew(int num_threads) {
  for (int i = 0; i < num_threads; ++i)
    threads_.emplace_back([this] { work(); });
}

ChecksumCrew::~ChecksumCrew() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  if (round_ != nullptr) end();
  changed_.notify_all();
  for (std::thread& thread : threads_)
    thread.join();
}

void ChecksumCrew::begin(std::vector<std::span<const std::byte>> slices) {
  auto round = std::make_shared<Round>();
  round->crcs.resize(slices.size());
  round->done = std::make_unique<std::atomic<bool>[]>(slices.size());
  round->slices = std::move(slices);
  {
    const std::scoped_lock lock(mutex_);
    round_ = std::move(round);
  }
  changed_.notify_all();
}

void ChecksumCrew::allow(std::size_t count) {
  if (count > round_->allowed.load(std::memory_order_relaxed))
    round_->allowed.store(count, std::memory_order_release);
}

void ChecksumCrew::end() {
  round_->over.store(true);
  allow(round_->slices.size());  // so that nobody waits for more
  while (round_->reading.load() != 0)
    std::this_thread::yield();
}

void ChecksumCrew::work() {
  // The kernel rounds a sleep up by 50 microseconds otherwise. Of this thread only.
  (void)::prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  std::shared_ptr<Round> round;
  while (true) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopping_ || round_ != round; });
      if (stopping_) return;
      round = round_;
    }
    take_slices(*round);
  }
}

void ChecksumCrew::take_slices(Round& round) {
  while (true) {
    const std::size_t slice = round.next.fetch_add(1, std::memory_order_relaxed);
    if (slice >= round.slices.size()) return;
    while (round.allowed.load(std::memory_order_acquire) <= slice)
      std::this_thread::sleep_for(kSliceNap);
    ++round.reading;  // before the look at `over`: end() looks the other way round
    if (!round.over.load()) {
      round.crcs[slice] = crc32c(round.slices[slice]);
      round.done[slice].store(true, std::memory_order_release);
    }
    --round.reading;
  }
}

}  // namespace thaw::kvsnap
