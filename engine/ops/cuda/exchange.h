#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/unique_fd.h"
#include "engine/cuda/buffer.h"
#include "engine/cuda/vmm.h"

// Memory through which ranks exchange rows: every rank has one region on its device, of the same
// layout everywhere, that its peers map and write. A rank is a process, or a thread of one process;
// each has a device, its own or not.
//
//   0             flags: for each source rank and block, the last exchange whose part is complete
//   kCounterAt    the number of exchanges done, this rank's own
//   kLandingAt    packets: [2 (parity of the exchange)][ranks][kMostPacketBytes]
//   then          the user's bytes, where whole parts are written in place

namespace thaw::ops::cuda {

inline constexpr int kMostRanks = 8;
inline constexpr int kFlagBlocks = 64;  ///< most blocks of one exchange
inline constexpr std::size_t kFlagBytes = 32;  ///< apart: a sector each
inline constexpr std::size_t kCounterAt = kMostRanks * kFlagBlocks * kFlagBytes;
inline constexpr std::size_t kLandingAt = std::size_t{64} << 10;
/// Of one rank's part of one exchange, as packets: 8 bytes carry 4 of data and the exchange's
/// number.
inline constexpr std::size_t kMostPacketBytes = std::size_t{512} << 10;

/// What kernels know of an exchange. Addresses as this process maps them.
struct ExchangeView {
  int rank = 0;
  int size = 1;
  std::byte* regions[kMostRanks] = {};  ///< by rank, the own one too
  /// Host memory. 0: all is well; 1: the host asked to give up; 2 + r: rank r did not answer in
  /// time. Once it is not 0, no kernel waits any more and what they gather is undefined.
  std::uint32_t* stop = nullptr;
  std::uint64_t timeout_ns = 0;
};

/// One rank's end of an exchange. Made on every rank with the same numbers, then connected. The
/// peers' regions stay mapped, and their memory alive, for as long as this lives, whether or not
/// their processes do. Thread-safe for stop() and stopped(); the rest is one thread's.
class Exchange {
 public:
  struct Options {
    int rank = 0;
    int size = 1;
    std::size_t user_bytes = 0;
    /// How long a kernel waits for a peer's part before it gives up.
    std::chrono::milliseconds timeout = std::chrono::seconds(20);
  };
  /// Allocates and clears the region. Errors: kInvalidArgument, kResourceExhausted, kCuda.
  static Result<std::unique_ptr<Exchange>> create(int device, const Options& options);
  ~Exchange();
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  /// Bytes of device memory that a region takes, before rounding to the allocation's granularity.
  static std::size_t region_bytes(int size, std::size_t user_bytes);

  /// For the peers: their connect() takes it.
  Result<UniqueFd> export_fd() const { return region_.export_fd(); }
  std::size_t bytes() const { return region_.size(); }
  /// Maps the peers' regions: one descriptor a rank, the own one ignored. No exchange may be
  /// enqueued before every rank has connected. Errors: kInvalidArgument; kCuda where the devices
  /// cannot reach each other's memory.
  Result<void> connect(std::span<const int> descriptors);

  const ExchangeView& view() const { return view_; }
  int rank() const { return view_.rank; }
  int size() const { return view_.size; }
  /// The user's bytes of the own region; at the same offset on every rank.
  thaw::cuda::DeviceSpan<std::byte> user() const;
  /// Where `address`, which lies in user(), is in a region.
  std::size_t offset_of(const void* address) const;

  /// Ends every wait of this rank's kernels, now and from now on.
  void stop();
  /// Why kernels gave up, as ExchangeView::stop; 0 where they did not.
  std::uint32_t stopped() const;
  /// The error that stands for stopped(). REQUIRES: it is not 0.
  Error stop_error() const;

 private:
  Exchange(thaw::cuda::VmmAllocation region, thaw::cuda::PinnedBuffer<std::uint32_t> stop,
           int device)
      : region_(std::move(region)), stop_(std::move(stop)), device_(device) {}

  thaw::cuda::VmmAllocation region_;
  std::vector<thaw::cuda::VmmAllocation> peers_;
  thaw::cuda::PinnedBuffer<std::uint32_t> stop_;
  ExchangeView view_;
  int device_ = 0;
};

}  // namespace thaw::ops::cuda
