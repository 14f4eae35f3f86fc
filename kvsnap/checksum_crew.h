#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace thaw::kvsnap {

/// Threads that compute the CRC32C of slices as these become readable, each slice by whoever is
/// free: no thread waits for another one's slice. During a round they look for work every few
/// microseconds and are not woken: waking a dozen threads for every megabyte costs the waker more
/// time than the copies take. One round at a time; begin() to end() belong to
/// one thread.
class ChecksumCrew {
 public:
  explicit ChecksumCrew(int num_threads);
  ~ChecksumCrew();
  ChecksumCrew(const ChecksumCrew&) = delete;
  ChecksumCrew& operator=(const ChecksumCrew&) = delete;

  /// REQUIRES: the round before has ended.
  void begin(std::vector<std::span<const std::byte>> slices);
  /// The first `count` slices may be read from now on; fewer than before changes nothing.
  void allow(std::size_t count);
  /// Whether the checksum of that slice is known; crc() may be called then.
  bool done(std::size_t slice) const { return round_->done[slice].load(std::memory_order_acquire); }
  std::uint32_t crc(std::size_t slice) const { return round_->crcs[slice]; }
  /// Nothing of the slices is read afterwards; those not read yet are dropped.
  void end();

 private:
  struct Round {
    std::vector<std::span<const std::byte>> slices;
    std::vector<std::uint32_t> crcs;
    std::unique_ptr<std::atomic<bool>[]> done;
    std::atomic<std::size_t> allowed{0};
    std::atomic<std::size_t> next{0};
    std::atomic<int> reading{0};  ///< threads
    std::atomic<bool> over{false};
  };
  void work();
  static void take_slices(Round& round);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<Round> round_;  ///< guarded by mutex_ for the threads
  bool stopping_ = false;  ///< guarded by mutex_
  std::vector<std::thread> threads_;
};

}  // namespace thaw::kvsnap
