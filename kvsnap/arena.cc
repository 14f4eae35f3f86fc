#include "kvsnap/arena.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace thaw::kvsnap {
namespace {

constexpr std::uint64_t kEndPart = 4;  // of the longest extent, at both ends of a lease

std::string name(Holder holder) {
  return "worker " + std::to_string(holder.worker) + " generation " +
         std::to_string(holder.generation);
}

bool same_places(const std::vector<Extent>& a, const std::vector<Extent>& b) {
  return std::ranges::equal(a, b, [](const Extent& x, const Extent& y) {
    return x.offset == y.offset && x.size_bytes == y.size_bytes;
  });
}

/// Pieces of whole blocks that each end where the next may begin, but for the last. Whoever reads
/// what another writes waits for the first, and reads the last when the other is through: these two
/// are shorter.
std::vector<Extent> cut(const std::vector<Extent>& extents, std::uint64_t block_bytes,
                        std::uint64_t most_bytes) {
  const std::uint64_t step = std::lcm(block_bytes, ExtentAllocator::kAlignment);
  const std::uint64_t size = most_bytes / step * step;
  if (size == 0) return extents;
  const std::uint64_t end_size = std::max(size / kEndPart / step * step, step);
  std::vector<Extent> pieces;
  for (std::size_t i = 0; i < extents.size(); ++i) {
    Extent left = extents[i];
    const auto take = [&](std::uint64_t bytes) {
      pieces.push_back({left.offset, bytes, 0});
      left.offset += bytes;
      left.size_bytes -= bytes;
    };
    if (i == 0 && left.size_bytes > end_size) take(end_size);
    while (left.size_bytes > size)
      take(size);
    if (i + 1 == extents.size() && left.size_bytes > end_size)
      take((left.size_bytes - end_size + step - 1) / step * step);
    pieces.push_back(left);
  }
  return pieces;
}

}  // namespace

Result<Arena> Arena::create(std::size_t size_bytes) {
  auto memory = create_arena_memory(size_bytes);
  if (!memory) return memory.error();
  return Arena(std::move(*memory));
}

Arena::Arena(ArenaMemory memory)
    : memory_(std::move(memory)), allocator_(memory_.mapping.size_bytes()) {}

Result<void> Arena::warm_in_background() {
  auto warmer = PageWarmer::start(memory_.fd.get());
  if (!warmer) return warmer.error();
  warmer_ = std::move(*warmer);
  return {};
}

bool Arena::has_exited(Holder holder) const {
  const auto exited = exited_.find(holder.worker);
  return exited != exited_.end() && holder.generation <= exited->second;
}

Result<WriteLease> Arena::lease_for_writing(Holder holder, std::uint64_t num_blocks,
                                            std::uint64_t block_bytes,
                                            std::uint64_t max_extent_bytes) {
  if (has_exited(holder)) {
    return make_error(Errc::kUnavailable, name(holder) + " has exited; it gets no write lease");
  }
  if (num_blocks == 0 || block_bytes == 0 || num_blocks > size_bytes() / block_bytes) {
    return make_error(
        num_blocks == 0 || block_bytes == 0 ? Errc::kInvalidArgument : Errc::kResourceExhausted,
        "a snapshot of " + std::to_string(num_blocks) + " blocks of " +
            std::to_string(block_bytes) + " bytes does not fit the arena of " +
            std::to_string(size_bytes()) + " bytes");
  }
  // Nothing is evicted for a request that could not be served even then.
  const std::uint64_t wanted = num_blocks * block_bytes;
  std::vector<Extent> extents;
  if (allocator_.free_bytes() + evictable_bytes() >= wanted) {
    do {
      extents = allocator_.allocate(num_blocks, block_bytes);
    } while (extents.empty() && evict_one());
  }
  if (extents.empty()) {
    return make_error(Errc::kResourceExhausted,
                      "no room for a snapshot of " + std::to_string(wanted) +
                          " bytes: " + std::to_string(allocator_.free_bytes()) + " free and " +
                          std::to_string(evictable_bytes()) + " evictable of " +
                          std::to_string(size_bytes()));
  }
  extents = cut(extents, block_bytes, max_extent_bytes);
  const LeaseId id = next_id_++;
  writers_.emplace(id, Writer{holder, extents});
  return WriteLease{id, std::move(extents)};
}

Result<SnapshotId> Arena::publish(LeaseId lease, Holder holder, Manifest manifest,
                                  std::optional<std::uint64_t> tokens_saved) {
  const auto writer = writers_.find(lease);
  if (writer == writers_.end()) {
    return make_error(Errc::kNotFound, "write lease " + std::to_string(lease) + " is not open");
  }
  if (writer->second.holder != holder) {
    return make_error(Errc::kInvalidArgument, "write lease " + std::to_string(lease) +
                                                  " belongs to " + name(writer->second.holder) +
                                                  ", not to " + name(holder));
  }
  if (!same_places(manifest.extents, writer->second.extents)) {
    return make_error(
        Errc::kInvalidArgument,
        "the manifest's extents are not those of write lease " + std::to_string(lease));
  }
  if (auto sizes = check_sizes(manifest); !sizes) return sizes.error();
  writers_.erase(writer);
  const SnapshotId id = next_id_++;
  Snapshot snapshot;
  snapshot.tokens_saved =
      std::max<std::uint64_t>(1, tokens_saved.value_or(manifest.token_ids.size()));
  snapshot.manifest = std::move(manifest);
  snapshot.last_use = ++uses_;
  snapshots_.emplace(id, std::move(snapshot));
  return id;
}

void Arena::abandon(LeaseId lease, Holder holder) {
  const auto writer = writers_.find(lease);
  if (writer == writers_.end() || writer->second.holder != holder) return;
  free_extents(writer->second.extents);
  writers_.erase(writer);
}

const Manifest* Arena::find(SnapshotId snapshot) const {
  const auto found = snapshots_.find(snapshot);
  return found == snapshots_.end() || found->second.removed ? nullptr : &found->second.manifest;
}

Result<ReadLease> Arena::lease_for_reading(SnapshotId snapshot, Holder holder) {
  if (has_exited(holder)) {
    return make_error(Errc::kUnavailable, name(holder) + " has exited; it gets no read lease");
  }
  const auto found = snapshots_.find(snapshot);
  if (found == snapshots_.end() || found->second.removed) {
    return make_error(Errc::kNotFound, "snapshot " + std::to_string(snapshot) + " is gone");
  }
  ++found->second.readers;
  found->second.last_use = ++uses_;
  const LeaseId id = next_id_++;
  readers_.emplace(id, Reader{holder, snapshot});
  return ReadLease{id, found->second.manifest};
}

void Arena::end_reading(LeaseId lease) {
  const auto reader = readers_.find(lease);
  if (reader == readers_.end()) return;  // ended by worker_exited()
  const auto snapshot = snapshots_.find(reader->second.snapshot);
  readers_.erase(reader);
  --snapshot->second.readers;
  drop_if_unused(snapshot);
}

void Arena::pin(SnapshotId snapshot) {
  const auto found = snapshots_.find(snapshot);
  if (found != snapshots_.end()) ++found->second.pins;
}

void Arena::unpin(SnapshotId snapshot) {
  const auto found = snapshots_.find(snapshot);
  if (found != snapshots_.end() && found->second.pins > 0) --found->second.pins;
}

void Arena::remove(SnapshotId snapshot) {
  const auto found = snapshots_.find(snapshot);
  if (found == snapshots_.end()) return;
  found->second.removed = true;
  drop_if_unused(found);
}

void Arena::worker_exited(Holder holder) {
  const auto [exited, added] = exited_.emplace(holder.worker, holder.generation);
  if (!added) exited->second = std::max(exited->second, holder.generation);
  for (auto writer = writers_.begin(); writer != writers_.end();) {
    if (!has_exited(writer->second.holder)) {
      ++writer;
      continue;
    }
    free_extents(writer->second.extents);
    writer = writers_.erase(writer);
  }
  std::vector<LeaseId> ended;
  for (const auto& [lease, reader] : readers_)
    if (has_exited(reader.holder)) ended.push_back(lease);
  for (LeaseId lease : ended)
    end_reading(lease);
}

std::size_t Arena::num_snapshots() const {
  return static_cast<std::size_t>(
      std::ranges::count_if(snapshots_, [](const auto& entry) { return !entry.second.removed; }));
}

std::uint64_t Arena::evictable_bytes() const {
  std::uint64_t total = 0;
  for (const auto& [id, snapshot] : snapshots_) {
    if (snapshot.pins > 0 || snapshot.readers > 0) continue;
    for (const Extent& extent : snapshot.manifest.extents)
      total += ExtentAllocator::reserved_bytes(extent);
  }
  return total;
}

bool Arena::evict_one() {
  // a is worth less than b: more bytes for each token of prefill it saves, then longer unused.
  const auto worth_less = [](const Snapshot& a, const Snapshot& b) {
    const double cost_a =
        static_cast<double>(a.manifest.payload_bytes()) / static_cast<double>(a.tokens_saved);
    const double cost_b =
        static_cast<double>(b.manifest.payload_bytes()) / static_cast<double>(b.tokens_saved);
    return cost_a != cost_b ? cost_a > cost_b : a.last_use < b.last_use;
  };
  auto victim = snapshots_.end();
  for (auto entry = snapshots_.begin(); entry != snapshots_.end(); ++entry) {
    if (entry->second.pins > 0 || entry->second.readers > 0) continue;
    if (victim == snapshots_.end() || worth_less(entry->second, victim->second)) victim = entry;
  }
  if (victim == snapshots_.end()) return false;
  const SnapshotId id = victim->first;
  const Snapshot gone = std::move(victim->second);
  snapshots_.erase(victim);
  free_extents(gone.manifest.extents);
  if (on_evict_) on_evict_(id, gone.manifest);
  return true;
}

void Arena::free_extents(const std::vector<Extent>& extents) {
  for (const Extent& extent : extents)
    allocator_.release(extent);
}

void Arena::drop_if_unused(std::map<SnapshotId, Snapshot>::iterator snapshot) {
  if (!snapshot->second.removed || snapshot->second.readers > 0) return;
  free_extents(snapshot->second.manifest.extents);
  snapshots_.erase(snapshot);
}

Result<void> Arena::check_integrity() const {
  std::map<std::uint64_t, std::uint64_t> ranges = allocator_.free_ranges();
  std::uint64_t count = ranges.size();
  const auto add = [&](const std::vector<Extent>& extents) {
    for (const Extent& extent : extents)
      ranges.emplace(extent.offset, ExtentAllocator::reserved_bytes(extent));
    count += extents.size();
  };
  for (const auto& [id, writer] : writers_)
    add(writer.extents);
  std::map<SnapshotId, int> reads;
  for (const auto& [id, reader] : readers_)
    ++reads[reader.snapshot];
  for (const auto& [id, snapshot] : snapshots_) {
    add(snapshot.manifest.extents);
    if (snapshot.readers != reads[id]) {
      return make_error(Errc::kInternal, "snapshot " + std::to_string(id) + " counts " +
                                             std::to_string(snapshot.readers) + " readers, not " +
                                             std::to_string(reads[id]));
    }
  }
  std::uint64_t end = 0;
  for (const auto& [offset, size] : ranges) {
    if (offset != end) {
      return make_error(Errc::kInternal,
                        "the arena's bytes at " + std::to_string(end) + " have no owner or two");
    }
    end = offset + size;
  }
  if (end != allocator_.size_bytes() || count != ranges.size()) {
    return make_error(Errc::kInternal, "the arena's owners cover " + std::to_string(end) +
                                           " bytes of " + std::to_string(allocator_.size_bytes()));
  }
  return {};
}

}  // namespace thaw::kvsnap
