#include "forkpool/worker/snapshot_service.h"

#include <span>
#include <string>
#include <utility>

#include "engine/base/log.h"

namespace thaw::forkpool::worker {
namespace {

Error no_arena() {
  return make_error(Errc::kUnsupported, "this worker has no snapshot arena");
}

}  // namespace

bool lost_device(const Error& error) {
  return error.code == Errc::kCuda || error.code == Errc::kDeadlineExceeded;
}

SnapshotService::SnapshotService(const Parts& parts) : parts_(parts) {
  if (parts_.arena == nullptr) return;
  writer_ =
      std::make_unique<kvsnap::SnapshotWriter>(*parts_.arena, *parts_.pipeline, parts_.kv.format);
  reader_ =
      std::make_unique<kvsnap::SnapshotReader>(*parts_.arena, *parts_.pipeline, parts_.kv.format);
}

Result<void> SnapshotService::snapshot(SnapshotFrame frame) {
  const std::uint64_t id = frame.id;
  auto write = start_write(std::move(frame));
  if (!write) {
    if (lost_device(write.error())) return write.error();
    logger("worker")->warn("snapshot={} failed error=\"{}\"", id, write.error().message);
    parts_.outbox->queue(SnapshotDoneFrame{id, write.error().message, {}});
    return {};
  }
  writes_.push_back(std::move(*write));
  return {};
}

Result<void> SnapshotService::restore(RestoreFrame frame) {
  const std::uint64_t id = frame.id;
  auto read = start_read(std::move(frame));
  if (!read) {
    if (lost_device(read.error())) return read.error();
    logger("worker")->warn("restore={} failed error=\"{}\"", id, read.error().message);
    parts_.outbox->queue(RestoreDoneFrame{id, read.error().message, 0});
    return {};
  }
  reads_.push_back(std::move(*read));
  return {};
}

Result<SnapshotService::Write> SnapshotService::start_write(SnapshotFrame frame) {
  if (writer_ == nullptr) return no_arena();
  const kvsnap::Manifest& manifest = frame.manifest;
  const auto match = parts_.index->match(manifest.cache_root, manifest.token_ids);
  const std::size_t num_blocks = manifest.token_ids.size() / kBlockSize;
  if (match.full_blocks.size() < num_blocks) {
    return make_error(Errc::kNotFound, "the KV of " +
                                           std::to_string(match.full_blocks.size() * kBlockSize) +
                                           " tokens is alive, not of all " +
                                           std::to_string(manifest.token_ids.size()));
  }
  std::vector<const std::byte*> sources;
  sources.reserve(match.full_blocks.size());
  for (BlockId block : match.full_blocks)
    sources.push_back(parts_.kv.block(block));
  // No use of the trunk: one that is copied because it is cold goes when it would have gone.
  kv::RadixIndex::Handle lock = parts_.index->lock_in_place(match);
  // The cache root is the pool's word: only it knows tenant and salt. The index just found the
  // tokens under it.
  const Hash128 cache_root = manifest.cache_root;
  auto copy = writer_->start(std::move(frame.manifest), cache_root, sources);
  if (!copy) return copy.error();
  return Write{frame.id, std::move(*copy), std::move(lock)};
}

Result<std::vector<BlockId>> SnapshotService::allocate(std::size_t num_blocks) {
  kv::BlockPool& pool = *parts_.pool;
  if (pool.num_free() + parts_.index->num_evictable() < num_blocks) {
    return make_error(Errc::kResourceExhausted,
                      "no room for a restore: it needs " + std::to_string(num_blocks) +
                          " blocks; " + std::to_string(pool.num_free()) + " are free and " +
                          std::to_string(parts_.index->num_evictable()) + " evictable");
  }
  if (pool.num_free() < num_blocks) parts_.index->evict(num_blocks);
  if (auto flushed = parts_.outbox->flush_evictions(); !flushed) return flushed.error();
  std::vector<BlockId> blocks;
  while (blocks.size() < num_blocks) {
    const BlockId block = pool.allocate();
    if (block < 0) {
      for (BlockId taken : blocks)
        pool.release(taken);
      return make_error(Errc::kResourceExhausted,
                        "no room for a restore of " + std::to_string(num_blocks) + " blocks");
    }
    blocks.push_back(block);
  }
  return blocks;
}

Result<SnapshotService::Read> SnapshotService::start_read(RestoreFrame frame) {
  if (reader_ == nullptr) return no_arena();
  kvsnap::Manifest& manifest = frame.manifest;
  Read read;
  read.id = frame.id;
  read.cache_root = manifest.cache_root;  // the pool's word: only it knows tenant and salt
  // Nothing is evicted for a snapshot that would be refused.
  if (auto checked = kvsnap::check_manifest(manifest, parts_.kv.format, read.cache_root,
                                            parts_.arena->size_bytes());
      !checked) {
    return checked.error();
  }
  read.blocks = parts_.index->match(read.cache_root, manifest.token_ids).full_blocks;
  read.num_alive = read.blocks.size();
  // Of whole blocks only: one that matches in part is of no use here and may go.
  const auto alive = std::span(manifest.token_ids).first(read.num_alive * kBlockSize);
  read.lock = parts_.index->lock(parts_.index->match(read.cache_root, alive));
  auto fresh = allocate(manifest.num_blocks() - read.num_alive);
  if (!fresh) return fresh.error();
  read.blocks.insert(read.blocks.end(), fresh->begin(), fresh->end());

  std::vector<std::byte*> destinations(read.num_alive, nullptr);
  for (BlockId block : *fresh)
    destinations.push_back(parts_.kv.block(block));
  auto copy = reader_->start(manifest, read.cache_root, destinations);
  if (!copy) {
    release(read);
    return copy.error();
  }
  read.copy = std::move(*copy);
  read.tokens = std::move(manifest.token_ids);
  return read;
}

Result<void> SnapshotService::poll() {
  if (busy()) parts_.pipeline->advance();
  for (auto write = writes_.begin(); write != writes_.end();) {
    const auto current = write++;
    if (!writer_->done(current->copy)) continue;
    if (auto finished = finish_write(*current); !finished) return finished;
    writes_.erase(current);
  }
  for (auto read = reads_.begin(); read != reads_.end();) {
    const auto current = read++;
    if (!reader_->done(current->copy)) continue;
    if (auto finished = finish_read(*current); !finished) return finished;
    reads_.erase(current);
  }
  return {};
}

Result<void> SnapshotService::finish_write(Write& write) {
  auto manifest = writer_->finish(std::move(write.copy));
  if (manifest) {
    ++num_snapshots_;
    logger("worker")->debug("snapshot={} tokens={} bytes={}", write.id, manifest->token_ids.size(),
                            manifest->payload_bytes());
    parts_.outbox->queue(SnapshotDoneFrame{write.id, "", std::move(*manifest)});
  } else if (lost_device(manifest.error())) {
    return manifest.error();
  } else {
    logger("worker")->warn("snapshot={} failed error=\"{}\"", write.id, manifest.error().message);
    parts_.outbox->queue(SnapshotDoneFrame{write.id, manifest.error().message, {}});
  }
  return {};
}

Result<void> SnapshotService::finish_read(Read& read) {
  const auto verified = reader_->finish(read.copy);
  if (verified) {
    ++num_restores_;
    // The index takes its own references. Where an equal block was published meanwhile, it keeps
    // that one, and ours is free again.
    parts_.index->insert(read.cache_root, read.tokens, read.blocks);
    logger("worker")->debug("restore={} tokens={} copied_blocks={}", read.id, read.tokens.size(),
                            read.blocks.size() - read.num_alive);
  } else if (lost_device(verified.error())) {
    return verified.error();
  } else {
    logger("worker")->warn("restore={} failed error=\"{}\"", read.id, verified.error().message);
  }
  release(read);
  parts_.outbox->queue(
      RestoreDoneFrame{read.id, verified ? "" : verified.error().message,
                       verified ? static_cast<std::uint32_t>(read.tokens.size()) : 0});
  return {};
}

void SnapshotService::release(const Read& read) {
  for (std::size_t i = read.num_alive; i < read.blocks.size(); ++i)
    parts_.pool->release(read.blocks[i]);
}

}  // namespace thaw::forkpool::worker
