#include "forkpool/transfers.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "engine/base/log.h"

namespace thaw::forkpool {

Transfers::Transfers(Loop& loop, kvsnap::Arena* arena, TrunkIndex& trunks, Send send)
    : loop_(loop), arena_(arena), trunks_(trunks), send_(std::move(send)) {
  if (arena_ == nullptr) return;
  arena_->set_eviction_listener([this](kvsnap::SnapshotId evicted, const kvsnap::Manifest&) {
    const TrunkId id = trunks_.with_snapshot(evicted);
    if (id == 0) return;
    ++num_evictions_;
    Trunk& trunk = *trunks_.find(id);
    trunk.snapshot.reset();
    if (!trunk.is_anywhere()) trunks_.remove(id);
  });
}

std::uint64_t Transfers::begin(const End& to, std::chrono::milliseconds deadline, Done done) {
  const std::uint64_t id = next_id_++;
  Move& move = moves_[id];
  move.to = to;
  move.done = std::move(done);
  move.started = loop_.now();
  move.timer = std::make_unique<Loop::Timer>(loop_);
  move.timer->start(move.started + deadline, [this, id] {
    const auto late = moves_.find(id);
    if (late == moves_.end()) return;
    report(late->second, make_error(Errc::kDeadlineExceeded, "the KV did not arrive in time"));
  });
  return id;
}

void Transfers::start(const End& from, const End& to, PrefixNames& names, std::size_t num_blocks,
                      std::chrono::milliseconds deadline, Done done) {
  const std::uint64_t id = begin(to, deadline, std::move(done));
  if (from.kv_layout != to.kv_layout || from.block_bytes != to.block_bytes) {
    const Error error =
        make_error(Errc::kUnsupported,
                   "the workers' KV layouts differ: " + from.kv_layout + " and " + to.kv_layout);
    return loop_.post([this, id, error] { finish(id, error); });
  }
  const Trunk* known = trunks_.find(names.name(num_blocks - 1));
  moves_.at(id).wrote = known == nullptr || !known->snapshot;
  const auto read_it = [this, id](const Result<TrunkId>& trunk) {
    if (!trunk) return finish(id, trunk.error());
    read(id, *trunk);
  };
  write(from, names, num_blocks, read_it, id);
}

void Transfers::write(const End& from, PrefixNames& names, std::size_t num_blocks, Written done) {
  write(from, names, num_blocks, std::move(done), std::nullopt);
}

void Transfers::write(const End& from, PrefixNames& names, std::size_t num_blocks, Written done,
                      std::optional<std::uint64_t> follower) {
  const auto answer_later = [&](Result<TrunkId> result) {
    loop_.post([done = std::move(done), result = std::move(result)] { done(result); });
  };
  if (arena_ == nullptr) {
    return answer_later(
        make_error(Errc::kUnsupported, "no arena to copy KV through: arena_bytes is 0"));
  }
  const Hash128 name = names.name(num_blocks - 1);
  TrunkId known = 0;
  if (const Trunk* trunk = trunks_.find(name, &known); trunk != nullptr && trunk->snapshot)
    return answer_later(known);
  for (auto& [other, writing] : writings_) {
    if (writing.names.back() != name) continue;
    writing.waiting.push_back(std::move(done));
    return;
  }
  auto lease = arena_->lease_for_writing(from.process, num_blocks, from.block_bytes,
                                         follower ? part_bytes : 0);
  if (!lease) return answer_later(std::move(lease).error());
  Writing writing;
  writing.source = from.process;
  writing.lease = lease->id;
  writing.waiting.push_back(std::move(done));
  if (follower) writing.followers.push_back(*follower);
  kvsnap::Manifest& manifest = writing.manifest;
  manifest.cache_root = names.root();
  manifest.kv_layout = from.kv_layout;
  manifest.block_size = kBlockSize;
  manifest.block_bytes = from.block_bytes;
  const auto tokens = names.first_tokens(num_blocks);
  manifest.token_ids.assign(tokens.begin(), tokens.end());
  for (std::size_t block = 0; block < num_blocks; ++block)
    writing.names.push_back(names.name(block));
  manifest.extents = std::move(lease->extents);
  const std::uint64_t id = next_id_++;
  send_(from.process.worker, SnapshotFrame{id, manifest, follower.has_value()});
  writings_.emplace(id, std::move(writing));
}

void Transfers::on_snapshot_part(std::uint32_t worker, const SnapshotPartFrame& frame) {
  const auto found = writings_.find(frame.id);
  if (found == writings_.end() || found->second.source.worker != worker) return;
  Writing& writing = found->second;
  std::vector<kvsnap::Extent>& extents = writing.manifest.extents;
  // What does not follow is left out: the end tells of all.
  if (frame.first_extent != writing.num_written ||
      frame.crc32c.size() > extents.size() - writing.num_written) {
    return;
  }
  for (std::size_t i = 0; i < frame.crc32c.size(); ++i)
    extents[writing.num_written + i].crc32c = frame.crc32c[i];
  follow(writing, writing.num_written + frame.crc32c.size());
}

/// Sends those who follow on: the first `num_written` extents are there, with their checksums.
void Transfers::follow(Writing& writing, std::size_t num_written) {
  const std::size_t first = std::exchange(writing.num_written, num_written);
  std::vector<std::uint32_t> fresh;
  for (std::size_t i = first; i < num_written; ++i)
    fresh.push_back(writing.manifest.extents[i].crc32c);
  if (fresh.empty()) return;
  for (const std::uint64_t id : writing.followers) {
    const auto found = moves_.find(id);
    if (found == moves_.end()) continue;
    Move& move = found->second;
    if (std::exchange(move.following, true)) {
      send_(move.to.process.worker, ArriveFrame{id, static_cast<std::uint32_t>(first), fresh, ""});
    } else {
      move.payload_bytes = writing.manifest.payload_bytes();
      send_(move.to.process.worker,
            RestoreFrame{id, writing.manifest, static_cast<std::uint32_t>(num_written)});
    }
  }
}

void Transfers::on_snapshot_done(std::uint32_t worker, const SnapshotDoneFrame& frame) {
  const auto found = writings_.find(frame.id);
  if (found == writings_.end() || found->second.source.worker != worker) return;
  Writing writing = std::move(found->second);
  writings_.erase(found);
  const auto tell = [&](const Result<TrunkId>& result) {
    for (const Written& waiting : writing.waiting)
      waiting(result);
  };
  const auto fail = [&](const Error& error) {
    arena_->abandon(writing.lease, writing.source);
    tell(error);
  };
  if (!frame.error.empty()) {
    return fail(make_error(Errc::kDataLoss, "worker " + std::to_string(worker) +
                                                " wrote no snapshot: " + frame.error));
  }
  if (frame.crc32c.size() != writing.manifest.extents.size()) {
    return fail(make_error(Errc::kProtocol, "a snapshot of other extents than were leased"));
  }
  for (std::size_t i = 0; i < frame.crc32c.size(); ++i)
    writing.manifest.extents[i].crc32c = frame.crc32c[i];
  const std::vector<TokenId> token_ids = writing.manifest.token_ids;
  const std::uint64_t bytes = writing.manifest.payload_bytes();
  const Hash128 root = writing.manifest.cache_root;
  if (writing.num_written > 0) follow(writing, writing.manifest.extents.size());
  auto snapshot = arena_->publish(writing.lease, writing.source, std::move(writing.manifest));
  if (!snapshot) return fail(snapshot.error());
  for (const std::uint64_t id : writing.followers) {
    const auto found_move = moves_.find(id);
    if (found_move == moves_.end() || !found_move->second.following) continue;
    const auto lease = arena_->lease_for_reading(*snapshot, found_move->second.to.process);
    if (lease) found_move->second.reading = lease->id;
  }
  PrefixNames names(root, token_ids, std::move(writing.names));
  const TrunkId id = trunks_.add(names, names.num_blocks(), bytes);
  Trunk& trunk = *trunks_.find(id);
  if (trunk.snapshot) {  // a file was read meanwhile; who follows this one reads on
    arena_->remove(*snapshot);
  } else {
    trunk.snapshot = *snapshot;
    settle_pin(arena_, trunk);
  }
  ++num_writes_;
  written_bytes_ += bytes;
  tell(id);
}

void Transfers::restore(TrunkId trunk, const End& to, std::chrono::milliseconds deadline,
                        Done done) {
  const std::uint64_t id = begin(to, deadline, std::move(done));
  loop_.post([this, id, trunk] { read(id, trunk); });
}

void Transfers::read(std::uint64_t id, TrunkId trunk) {
  const auto found = moves_.find(id);
  if (found == moves_.end()) return;
  Move& move = found->second;
  if (move.following) return;  // it has all of it, or is about to
  const Trunk* known = trunks_.find(trunk);
  if (known == nullptr || !known->snapshot)
    return finish(id, make_error(Errc::kNotFound, "the snapshot has left the arena"));
  auto lease = arena_->lease_for_reading(*known->snapshot, move.to.process);
  if (!lease) return finish(id, std::move(lease).error());
  move.reading = lease->id;
  move.payload_bytes = lease->manifest.payload_bytes();
  send_(move.to.process.worker, RestoreFrame{id, std::move(lease->manifest)});
}

void Transfers::on_restore_done(std::uint32_t worker, const RestoreDoneFrame& frame) {
  const auto found = moves_.find(frame.id);
  if (found == moves_.end() || found->second.to.process.worker != worker) return;
  Move& move = found->second;
  if (!move.reading && !move.following) return;
  if (move.reading) arena_->end_reading(*move.reading);
  if (!frame.error.empty()) {
    ++num_refused_;
    return finish(frame.id, make_error(Errc::kDataLoss, "worker " + std::to_string(worker) +
                                                            " restored nothing: " + frame.error));
  }
  ++num_reads_;
  read_bytes_ += move.payload_bytes;
  if (move.wrote && on_measured) on_measured(move.payload_bytes, loop_.now() - move.started);
  finish(frame.id, frame.num_tokens);
}

bool Transfers::waits_for(std::uint32_t worker) const {
  return std::ranges::any_of(
             writings_, [&](const auto& entry) { return entry.second.source.worker == worker; }) ||
         std::ranges::any_of(moves_, [&](const auto& entry) {
           const Move& move = entry.second;
           return (move.reading || move.following) && move.to.process.worker == worker;
         });
}

void Transfers::on_exit(kvsnap::Holder process) {
  if (arena_ == nullptr) return;
  arena_->worker_exited(process);
  const Error error = make_error(Errc::kUnavailable, "worker " + std::to_string(process.worker) +
                                                         " died while its KV was copied");
  std::vector<Written> waiting;
  std::erase_if(writings_, [&](auto& entry) {
    if (entry.second.source != process) return false;
    std::ranges::move(entry.second.waiting, std::back_inserter(waiting));
    return true;
  });
  for (const Written& written : waiting)
    written(error);
  std::vector<std::uint64_t> failed;
  for (const auto& [id, move] : moves_) {
    if (move.to.process == process) failed.push_back(id);
  }
  for (const std::uint64_t id : failed)
    finish(id, error);
}

void Transfers::add_to(TierStatus& status) const {
  status.entries = num_snapshots();
  status.bytes = arena_used_bytes();
  status.hits = num_reads_;
  status.restored_bytes = read_bytes_;
  status.writes = num_writes_;
  status.written_bytes = written_bytes_;
  status.evictions = num_evictions_;
  status.refused = num_refused_;
}

void Transfers::finish(std::uint64_t id, Result<std::uint32_t> result) {
  const auto found = moves_.find(id);
  if (found == moves_.end()) return;
  Move move = std::move(found->second);
  moves_.erase(found);
  // One that still waits for parts must not wait for ever; it ignores what comes too late.
  if (move.following && !result)
    send_(move.to.process.worker, ArriveFrame{id, 0, {}, result.error().message});
  report(move, std::move(result));
}

void Transfers::report(Move& move, Result<std::uint32_t> result) {
  move.timer->cancel();
  if (!result) logger("pool")->warn("transfer failed: {}", result.error().to_string());
  if (const Done done = std::exchange(move.done, nullptr)) done(std::move(result));
}

}  // namespace thaw::forkpool
