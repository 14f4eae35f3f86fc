#include "forkpool/worker/eviction_offers.h"

#include <algorithm>
#include <utility>

namespace thaw::forkpool::worker {
namespace {

constexpr std::size_t kLowPart = 4;  // a quarter of the pool
constexpr std::size_t kGrainPart = 256;  // looking costs a pass over what is cold

}  // namespace

std::optional<OfferFrame> EvictionOffers::next() {
  const std::size_t num_blocks = pool_->num_blocks();
  const std::size_t num_free = pool_->num_free();
  if (min_tokens_ == 0 || num_free >= num_blocks / kLowPart) {
    nothing_at_.reset();
    return std::nullopt;
  }
  if (nothing_at_) {
    // Blocks become cold as others are taken: free ones first, then those of colder trunks.
    const std::size_t taken = std::max(nothing_at_->num_free, num_free) - num_free +
                              static_cast<std::size_t>(num_evicted_ - nothing_at_->num_evicted);
    if (taken <= num_blocks / kGrainPart) return std::nullopt;
  }
  auto path = index_->find_cold_path(
      num_blocks / kLowPart - num_free, (min_tokens_ + kBlockSize - 1) / kBlockSize,
      [this](const Hash128& hash) { return offered_.contains(hash); });
  if (!path) {
    nothing_at_ = Moment{num_free, num_evicted_};
    return std::nullopt;
  }
  nothing_at_.reset();
  offered_.insert(path->hashes.begin(), path->hashes.end());
  return OfferFrame{path->root, std::move(path->tokens),
                    static_cast<std::uint32_t>(path->num_to_lose * kBlockSize)};
}

}  // namespace thaw::forkpool::worker
