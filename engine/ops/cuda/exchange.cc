#include "engine/ops/cuda/exchange.h"

#include <atomic>
#include <string>

#include "engine/base/error.h"
#include "engine/cuda/check.h"

namespace thaw::ops::cuda {
namespace {

std::size_t user_at(int size) {
  return kLandingAt + 2 * static_cast<std::size_t>(size) * kMostPacketBytes;
}

}  // namespace

std::size_t Exchange::region_bytes(int size, std::size_t user_bytes) {
  return user_at(size) + user_bytes;
}

Result<std::unique_ptr<Exchange>> Exchange::create(int device, const Options& options) try {
  if (options.size < 1 || options.size > kMostRanks || options.rank < 0 ||
      options.rank >= options.size) {
    return make_error(Errc::kInvalidArgument, "exchange: rank " + std::to_string(options.rank) +
                                                  " of " + std::to_string(options.size) +
                                                  "; up to " + std::to_string(kMostRanks) +
                                                  " ranks, counted from 0, are right");
  }
  auto region =
      thaw::cuda::VmmAllocation::create(device, region_bytes(options.size, options.user_bytes));
  if (!region) return make_error(region.error().code, "exchange: " + region.error().message);
  const thaw::cuda::DeviceScope scope(device);
  thaw::cuda::PinnedBuffer<std::uint32_t> stop(1);
  stop[0] = 0;
  const thaw::cuda::Stream stream;
  thaw::cuda::check(cudaMemsetAsync(region->data(), 0, user_at(options.size), stream.view().get()),
                    "clear the exchange");
  stream.synchronize();
  std::unique_ptr<Exchange> made(
      new Exchange(std::move(*region), std::move(stop), device));  // NOLINT: private constructor
  made->view_.rank = options.rank;
  made->view_.size = options.size;
  made->view_.regions[options.rank] = made->region_.data();
  made->view_.stop = made->stop_.data();
  made->view_.timeout_ns =
      static_cast<std::uint64_t>(std::chrono::nanoseconds(options.timeout).count());
  return made;
} catch (const Exception& failure) {
  return failure.error();
}

Exchange::~Exchange() = default;

Result<void> Exchange::connect(std::span<const int> descriptors) {
  if (static_cast<int>(descriptors.size()) != size() || !peers_.empty()) {
    return make_error(Errc::kInvalidArgument, "exchange: " + std::to_string(descriptors.size()) +
                                                  " descriptors for " + std::to_string(size()) +
                                                  " ranks; one each, once, is right");
  }
  for (int rank = 0; rank < size(); ++rank) {
    if (rank == view_.rank) continue;
    auto peer = thaw::cuda::VmmAllocation::import(
        device_, descriptors[static_cast<std::size_t>(rank)], region_.size());
    if (!peer) {
      return make_error(peer.error().code, "exchange: memory of rank " + std::to_string(rank) +
                                               ": " + peer.error().message);
    }
    view_.regions[rank] = peer->data();
    peers_.push_back(std::move(*peer));
  }
  return {};
}

thaw::cuda::DeviceSpan<std::byte> Exchange::user() const {
  const std::size_t first = user_at(size());
  return region_.span().subspan(first, region_.size() - first);
}

std::size_t Exchange::offset_of(const void* address) const {
  return static_cast<std::size_t>(static_cast<const std::byte*>(address) - region_.data());
}

void Exchange::stop() {
  std::uint32_t none = 0;
  std::atomic_ref<std::uint32_t>(stop_[0]).compare_exchange_strong(none, 1);
}

std::uint32_t Exchange::stopped() const {
  return std::atomic_ref<std::uint32_t>(stop_[0]).load();
}

Error Exchange::stop_error() const {
  const std::uint32_t why = stopped();
  if (why == 1) return make_error(Errc::kUnavailable, "exchange: it was stopped");
  return make_error(Errc::kDeadlineExceeded,
                    "exchange: rank " + std::to_string(why - 2) + " did not answer rank " +
                        std::to_string(rank()) + " within " +
                        std::to_string(view_.timeout_ns / 1000000) + " ms");
}

}  // namespace thaw::ops::cuda
