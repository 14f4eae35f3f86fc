#include "forkpool/worker/snapshot_service.h"

#include <algorithm>
#include <span>
#include <string>
#include <utility>

#include "engine/base/hash.h"
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
  return take(start_read(std::move(frame)), id);
}

Result<void> SnapshotService::borrow(BorrowFrame frame) {
  const std::uint64_t id = frame.id;
  return take(start_borrow(std::move(frame)), id);
}

Result<void> SnapshotService::lent(const LentFrame& frame) {
  const auto read = std::ranges::find(reads_, frame.id, &Read::id);
  if (read == reads_.end() || !read->awaits_loan) return {};
  read->awaits_loan = false;
  if (!frame.error.empty()) {
    read->failed = make_error(Errc::kNotFound, "nothing is lent: " + frame.error);
    return {};
  }
  if (frame.blocks.empty() && read->blocks.empty()) {
    read->failed = make_error(Errc::kProtocol, "lent as named, but no block was named");
    return {};
  }
  read->to_copy = frame.blocks;
  return copy_what_is_left(*read);
}

/// Both copies go to the same blocks: the second begins when the first has ended.
Result<void> SnapshotService::copy_what_is_left(Read& read) {
  if (read.failed || read.to_copy.empty() || !read.copies.empty()) return {};
  return note(read, copy_from_peer(read, std::exchange(read.to_copy, {})));
}

Result<void> SnapshotService::take(Result<Read> read, std::uint64_t id) {
  if (read) {
    reads_.push_back(*std::move(read));
    return {};
  }
  if (lost_device(read.error())) return read.error();
  logger("worker")->warn("restore={} failed error=\"{}\"", id, read.error().message);
  parts_.outbox->queue(RestoreDoneFrame{id, read.error().message, 0});
  return {};
}

Result<void> SnapshotService::note(Read& read, Result<void> went) {
  if (went) return {};
  if (lost_device(went.error())) return went;
  if (!read.failed) read.failed = std::move(went).error();
  return {};
}

Result<void> SnapshotService::arrive(const ArriveFrame& frame) {
  const auto read = std::ranges::find(reads_, frame.id, &Read::id);
  if (read == reads_.end() || read->failed) return {};
  const auto wrong = [&](Error error) { read->failed = std::move(error); };
  std::vector<kvsnap::Extent>& extents = read->manifest.extents;
  if (!frame.error.empty()) {
    wrong(make_error(Errc::kDataLoss, "the snapshot was not written: " + frame.error));
  } else if (frame.first_extent != read->num_started ||
             frame.crc32c.size() > extents.size() - read->num_started) {
    wrong(make_error(Errc::kProtocol, "extents " + std::to_string(frame.first_extent) + " and " +
                                          std::to_string(frame.crc32c.size()) +
                                          " more have arrived, behind " +
                                          std::to_string(read->num_started) + " of " +
                                          std::to_string(extents.size())));
  } else {
    for (std::size_t i = 0; i < frame.crc32c.size(); ++i)
      extents[frame.first_extent + i].crc32c = frame.crc32c[i];
    return note(*read, start_extents(*read, frame.first_extent + frame.crc32c.size()));
  }
  return {};
}

void SnapshotService::expect(std::uint32_t from) {
  std::shared_ptr<const std::byte> memory;
  if (const auto peer = peers_.find(from); peer != peers_.end() && peer->second.memory)
    memory = {peer->second.memory, peer->second.memory->base()};
  parts_.pipeline->expect(std::move(memory));
}

void SnapshotService::meet(const PeerFrame& frame) {
  // What copies from the old mapping keeps it to its end.
  Peer& peer = peers_[frame.worker] = {};
  peer.description = frame.memory;
  peer.description.kv.reset();
  if (frame.memory.kv_bytes == 0) {
    peers_.erase(frame.worker);
    return;
  }
  Result<std::unique_ptr<PeerMemory>> mapped =
      parts_.map_peer ? parts_.map_peer(frame.memory)
                      : make_error(Errc::kUnsupported, "this worker maps no other's memory");
  if (mapped) {
    peer.memory = *std::move(mapped);
  } else {
    peer.why = mapped.error().message;
    logger("worker")->warn("peer={} cannot be reached error=\"{}\"", frame.worker, peer.why);
  }
}

void SnapshotService::lend(const LendFrame& frame) {
  const auto match = parts_.index->match(frame.cache_root, frame.token_ids);
  LentFrame answer{frame.id, "", match.full_blocks};
  if (match.full_blocks.size() * kBlockSize < frame.token_ids.size()) {
    answer = {frame.id,
              "the KV of " + std::to_string(match.full_blocks.size() * kBlockSize) +
                  " tokens is alive, not of all " + std::to_string(frame.token_ids.size()),
              {}};
  } else {
    loans_.insert_or_assign(frame.id, parts_.index->lock_in_place(match));
  }
  parts_.outbox->queue(answer);
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
  return Write{frame.id, frame.tell_parts ? std::optional<std::size_t>(0) : std::nullopt,
               std::move(*copy), std::move(lock)};
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

Result<void> SnapshotService::find_room(Read& read) {
  const Hash128& root = read.manifest.cache_root;
  const std::span<const TokenId> tokens = read.manifest.token_ids;
  read.blocks = parts_.index->match(root, tokens).full_blocks;
  read.num_alive = read.blocks.size();
  // Of whole blocks only: one that matches in part is of no use here and may go.
  const auto alive = tokens.first(read.num_alive * kBlockSize);
  read.lock = parts_.index->lock(parts_.index->match(root, alive));
  auto fresh = allocate(tokens.size() / kBlockSize - read.num_alive);
  if (!fresh) return fresh.error();
  read.blocks.insert(read.blocks.end(), fresh->begin(), fresh->end());
  return {};
}

Result<SnapshotService::Read> SnapshotService::start_read(RestoreFrame frame) {
  if (reader_ == nullptr) return no_arena();
  Read read;
  read.id = frame.id;
  read.manifest = std::move(frame.manifest);
  // Nothing is evicted for a snapshot that would be refused. The cache root is the pool's word:
  // only it knows tenant and salt.
  if (auto checked = kvsnap::check_manifest(read.manifest, parts_.kv.format,
                                            read.manifest.cache_root, parts_.arena->size_bytes());
      !checked) {
    return checked.error();
  }
  if (auto found = find_room(read); !found) return found.error();
  if (auto started = start_extents(read, frame.num_written); !started) {
    release(read);
    return started.error();
  }
  name_blocks(read);
  return read;
}

void SnapshotService::name_blocks(Read& read) {
  const std::span<const TokenId> tokens = read.manifest.token_ids;
  for (std::size_t block = 0; block < tokens.size() / kBlockSize; ++block) {
    read.names.push_back(chain_block_hash(block == 0 ? read.manifest.cache_root : read.names.back(),
                                          tokens.subspan(block * kBlockSize, kBlockSize)));
  }
}

Result<void> SnapshotService::start_extents(Read& read, std::size_t end) {
  end = std::min(end, read.manifest.extents.size());
  if (end == read.num_started) return {};
  std::vector<std::byte*> destinations(read.num_alive, nullptr);
  for (std::size_t i = read.num_alive; i < read.blocks.size(); ++i)
    destinations.push_back(parts_.kv.block(read.blocks[i]));
  auto copy =
      reader_->start(read.manifest, read.manifest.cache_root, destinations, read.num_started, end);
  if (!copy) return copy.error();
  read.num_started = end;
  read.copies.push_back(std::move(*copy));
  return {};
}

Result<SnapshotService::Read> SnapshotService::start_borrow(BorrowFrame frame) {
  const auto refused = [&](const std::string& why) {
    return make_error(Errc::kUnsupported, "peer " + std::to_string(frame.from) + ": " + why);
  };
  const auto found = peers_.find(frame.from);
  if (found == peers_.end()) return refused("nobody has told of its memory");
  const Peer& peer = found->second;
  if (peer.memory == nullptr) return refused(peer.why);
  const kvsnap::KvFormat& format = parts_.kv.format;
  if (peer.description.kv_layout != format.kv_layout ||
      peer.description.block_bytes != format.block_bytes) {
    return refused("its KV is '" + peer.description.kv_layout + "', not '" + format.kv_layout +
                   "'");
  }
  Read read;
  read.id = frame.id;
  read.manifest.cache_root = frame.cache_root;
  read.manifest.token_ids = std::move(frame.token_ids);
  read.peer = peer.memory;
  read.peer_bytes = peer.description.kv_bytes;
  read.awaits_loan = true;
  if (!frame.blocks.empty()) {
    if (auto started = copy_from_peer(read, frame.blocks); !started) {
      release(read);
      return started.error();
    }
  }
  name_blocks(read);
  return read;
}

Result<void> SnapshotService::copy_from_peer(Read& read, const std::vector<BlockId>& blocks) {
  const std::uint64_t block_bytes = parts_.kv.format.block_bytes;
  const std::size_t num_wanted = read.manifest.token_ids.size() / kBlockSize;
  if (blocks.size() != num_wanted) {
    return make_error(Errc::kProtocol, std::to_string(blocks.size()) + " blocks are lent for " +
                                           std::to_string(num_wanted));
  }
  const std::uint64_t num_blocks = read.peer_bytes / block_bytes;
  for (const BlockId block : blocks) {
    if (static_cast<std::uint64_t>(block) < num_blocks) continue;
    return make_error(Errc::kUnsupported, "block " + std::to_string(block) + " of the peer's " +
                                              std::to_string(num_blocks));
  }
  if (read.blocks.empty()) {
    if (auto room = find_room(read); !room) return room;
  }
  std::vector<kvsnap::ExtentCopy> copies(1);
  for (std::size_t i = read.num_alive; i < read.blocks.size(); ++i) {
    copies[0].pieces.push_back(
        {read.peer->base() + block_bytes * static_cast<std::size_t>(blocks[i]),
         parts_.kv.block(read.blocks[i]), block_bytes});
  }
  auto copy = parts_.pipeline->launch(kvsnap::CopyDirection::kFromPeer, std::move(copies));
  if (!copy) return copy.error();
  read.copies.push_back({{}, *copy});
  return {};
}

void SnapshotService::tell_parts(Write& write) {
  if (!write.num_told) return;
  const std::vector<std::uint32_t> written = writer_->written(write.copy);
  if (written.size() <= *write.num_told) return;
  const auto first = static_cast<std::uint32_t>(*write.num_told);
  parts_.outbox->queue(
      SnapshotPartFrame{write.id, first, {written.begin() + first, written.end()}});
  write.num_told = written.size();
}

bool SnapshotService::copying() const {
  return !writes_.empty() ||
         std::ranges::any_of(reads_, [](const Read& read) { return !read.copies.empty(); });
}

Result<void> SnapshotService::poll() {
  if (busy()) parts_.pipeline->advance();
  for (auto write = writes_.begin(); write != writes_.end();) {
    const auto current = write++;
    if (!writer_->done(current->copy)) {
      tell_parts(*current);
      continue;
    }
    if (auto finished = finish_write(*current); !finished) return finished;
    writes_.erase(current);
  }
  for (auto read = reads_.begin(); read != reads_.end();) {
    const auto current = read++;
    while (!current->copies.empty() && parts_.pipeline->done(current->copies.front().copy))
      if (auto finished = finish_copy(*current); !finished) return finished;
    if (auto started = copy_what_is_left(*current); !started) return started;
    if (!current->over()) continue;
    const Result<void> told = finish_read(*current);
    reads_.erase(current);
    if (!told) return told;
  }
  return {};
}

Result<void> SnapshotService::finish_write(Write& write) {
  auto manifest = writer_->finish(std::move(write.copy));
  if (manifest) {
    ++num_snapshots_;
    logger("worker")->debug("snapshot={} tokens={} bytes={}", write.id, manifest->token_ids.size(),
                            manifest->payload_bytes());
    SnapshotDoneFrame done{write.id, "", {}};
    for (const kvsnap::Extent& extent : manifest->extents)
      done.crc32c.push_back(extent.crc32c);
    parts_.outbox->queue(done);
  } else if (lost_device(manifest.error())) {
    return manifest.error();
  } else {
    logger("worker")->warn("snapshot={} failed error=\"{}\"", write.id, manifest.error().message);
    parts_.outbox->queue(SnapshotDoneFrame{write.id, manifest.error().message, {}});
  }
  return {};
}

Result<void> SnapshotService::finish_copy(Read& read) {
  const kvsnap::SnapshotReader::Pending copy = std::move(read.copies.front());
  read.copies.pop_front();
  Result<void> verified;
  if (read.peer != nullptr) {
    if (const auto arrived = parts_.pipeline->collect(copy.copy); !arrived)
      verified = arrived.error();
  } else {
    verified = reader_->finish(copy);
  }
  return note(read, std::move(verified));
}

Result<void> SnapshotService::finish_read(Read& read) {
  const std::vector<TokenId>& tokens = read.manifest.token_ids;
  // Told before the index takes them: what waits for them is sent meanwhile, and comes behind.
  const Result<void> told = parts_.outbox->send(
      RestoreDoneFrame{read.id, read.failed ? read.failed->message : "",
                       read.failed ? 0 : static_cast<std::uint32_t>(tokens.size())});
  if (!read.failed) {
    ++num_restores_;
    // The index takes its own references. Where an equal block was published meanwhile, it keeps
    // that one, and ours is free again.
    parts_.index->insert(read.manifest.cache_root, tokens, read.blocks, read.names);
    const std::chrono::duration<double, std::milli> took =
        std::chrono::steady_clock::now() - read.started;
    logger("worker")->debug("restore={} tokens={} copied_blocks={} straight={} ms={:.2f}", read.id,
                            tokens.size(), read.blocks.size() - read.num_alive,
                            read.peer != nullptr, took.count());
  } else {
    logger("worker")->warn("restore={} failed error=\"{}\"", read.id, read.failed->message);
  }
  release(read);
  return told;
}

void SnapshotService::release(const Read& read) {
  for (std::size_t i = read.num_alive; i < read.blocks.size(); ++i)
    parts_.pool->release(read.blocks[i]);
}

}  // namespace thaw::forkpool::worker
