// The part of Dispatcher that keeps what workers are about to evict.

#include <algorithm>

#include "engine/base/log.h"
#include "forkpool/dispatcher.h"

namespace thaw::forkpool {

void Dispatcher::on_offer(std::uint32_t worker, const OfferFrame& offer) {
  if (transfers_.arena_bytes() == 0) return;
  PrefixNames names(offer.root, offer.token_ids);
  const auto known = trunks_.longest(names);
  const auto num_tokens = static_cast<std::uint32_t>(offer.token_ids.size());
  const std::uint32_t to_lose =
      std::min(offer.num_to_lose, num_tokens - (known ? known->num_tokens : 0));
  const std::uint64_t bytes = num_tokens / kBlockSize * slots_[worker]->hello().block_bytes;
  // Written now, and brought back if somebody asks for it.
  const double copies = model_.restore_seconds(bytes, false) +
                        static_cast<double>(bytes) / model_.copy_bytes_per_second;
  if (to_lose == 0 || model_.prefill_seconds(to_lose) <= copies) return;
  transfers_.write(end_of(worker), names, names.num_blocks(),
                   [worker, num_tokens](const Result<TrunkId>& trunk) {
                     if (trunk) {
                       logger("pool")->debug("worker={} tokens={} kept before they are evicted",
                                             worker, num_tokens);
                     } else {
                       logger("pool")->info("worker={} tokens={} will be lost when evicted: {}",
                                            worker, num_tokens, trunk.error().message);
                     }
                   });
}

}  // namespace thaw::forkpool
