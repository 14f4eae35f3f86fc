// The part of Dispatcher that keeps what workers are about to evict.

#include <algorithm>
#include <memory>
#include <span>
#include <utility>

#include "engine/base/log.h"
#include "forkpool/dispatcher.h"

namespace thaw::forkpool {

void Dispatcher::on_offer(std::uint32_t worker, OfferFrame& offer) {
  if (transfers_.arena_bytes() == 0) return;
  keep_offered(end_of(worker), std::make_shared<const OfferFrame>(std::move(offer)), 0);
}

/// Keeps an offered trunk without its last `lost_blocks` where that pays.
void Dispatcher::keep_offered(const Transfers::End& from,
                              const std::shared_ptr<const OfferFrame>& offer,
                              std::size_t lost_blocks) {
  const std::size_t num_blocks = offer->token_ids.size() / kBlockSize - lost_blocks;
  const auto num_tokens = static_cast<std::uint32_t>(num_blocks * kBlockSize);
  PrefixNames names(offer->root, std::span(offer->token_ids).first(num_tokens));
  const auto known = trunks_.longest(names);
  // From the first token on that no earlier offer covers.
  const auto begin = static_cast<std::uint32_t>(offer->token_ids.size()) - offer->num_to_lose;
  const std::uint32_t covered = std::max(begin, known ? known->num_tokens : 0);
  const std::uint32_t to_lose = num_tokens - std::min(num_tokens, covered);
  const std::uint64_t bytes = num_blocks * from.block_bytes;
  // Written now, and brought back if somebody asks for it.
  const double copies = model_.restore_seconds(bytes, Tier::kArena) +
                        static_cast<double>(bytes) / model_.copy_bytes_per_second;
  if (to_lose == 0 || model_.prefill_seconds(to_lose) <= copies) return;
  transfers_.write(
      from, names, num_blocks, [this, from, offer, num_tokens](const Result<TrunkId>& trunk) {
        const std::uint32_t worker = from.process.worker;
        if (trunk) {
          // Only what somebody owns goes to files.
          if (const auto owner = owner_of(offer->root)) trunks_.find(*trunk)->set_owner(*owner);
          logger("pool")->debug("worker={} tokens={} kept before they are evicted", worker,
                                num_tokens);
          return;
        }
        // A trunk is evicted from its end. What is left is copied, each time less than before.
        const WorkerSlot& slot = *slots_[worker];
        if (slot.ready() && slot.generation() == from.process.generation) {
          PrefixNames left(offer->root, offer->token_ids);
          const std::uint32_t alive = slot.ledger().alive_tokens(left);
          if (alive > 0 && alive < num_tokens) {
            return keep_offered(from, offer, (offer->token_ids.size() - alive) / kBlockSize);
          }
        }
        logger("pool")->info("worker={} tokens={} will be lost when evicted: {}", worker,
                             num_tokens, trunk.error().message);
      });
}

/// Whose trunks begin with that root, of those who ask now or have asked of late.
std::optional<TrunkOwner> Dispatcher::owner_of(const Hash128& root) {
  if (engine_ == nullptr) return std::nullopt;
  for (const RecentTrunks::Entry& entry : recent_.entries())
    if (engine_->root_of(entry.owner) == root) return entry.owner;
  for (const auto& [id, entry] : entries_) {
    TrunkOwner owner = trunk_owner(entry.request());
    if (engine_->root_of(owner) == root) return owner;
  }
  return std::nullopt;
}

}  // namespace thaw::forkpool
