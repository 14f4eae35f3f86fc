#include "forkpool/transfers.h"

#include <utility>

#include "engine/base/log.h"

namespace thaw::forkpool {

Transfers::Transfers(Loop& loop, kvsnap::Arena* arena, Send send)
    : loop_(loop), arena_(arena), send_(std::move(send)) {
  if (arena_ == nullptr) return;
  arena_->set_eviction_listener([this](kvsnap::SnapshotId evicted, const kvsnap::Manifest&) {
    std::erase_if(snapshots_, [&](const auto& entry) { return entry.second == evicted; });
  });
}

void Transfers::start(const End& from, const End& to, PrefixNames& names, std::size_t num_blocks,
                      std::chrono::milliseconds deadline, Done done) {
  const std::uint64_t id = next_id_++;
  Move& move = moves_[id];
  move.to = to;
  move.done = std::move(done);
  move.num_tokens = static_cast<std::uint32_t>(num_blocks * kBlockSize);
  move.started = loop_.now();
  move.timer = std::make_unique<Loop::Timer>(loop_);
  const auto fail_later = [&](Error error) {
    loop_.post([this, id, error = std::move(error)] { finish(id, error); });
  };
  if (arena_ == nullptr) {
    return fail_later(
        make_error(Errc::kUnsupported, "no arena to copy KV through: arena_bytes is 0"));
  }
  if (from.kv_layout != to.kv_layout || from.block_bytes != to.block_bytes) {
    return fail_later(make_error(Errc::kUnsupported, "the workers' KV layouts differ: " +
                                                         from.kv_layout + " and " + to.kv_layout));
  }
  const Hash128 name = names.name(num_blocks - 1);
  move.timer->start(move.started + deadline, [this, id] {
    const auto late = moves_.find(id);
    if (late == moves_.end()) return;
    report(late->second, make_error(Errc::kDeadlineExceeded, "the KV did not arrive in time"));
  });
  if (const auto known = snapshots_.find(name); known != snapshots_.end()) {
    return loop_.post([this, id, snapshot = known->second] { restore(id, snapshot); });
  }
  for (auto& [other, writing] : writings_) {
    if (writing.name != name) continue;
    writing.readers.push_back(id);
    return;
  }
  auto lease = arena_->lease_for_writing(from.process, num_blocks, from.block_bytes);
  if (!lease) return fail_later(std::move(lease).error());
  move.wrote = true;
  Writing writing;
  writing.source = from.process;
  writing.lease = lease->id;
  writing.name = name;
  writing.readers.push_back(id);
  kvsnap::Manifest& manifest = writing.manifest;
  manifest.cache_root = names.root();
  manifest.kv_layout = from.kv_layout;
  manifest.block_size = kBlockSize;
  manifest.block_bytes = from.block_bytes;
  for (std::size_t block = 0; block < num_blocks; ++block) {
    const auto tokens = names.tokens(block);
    manifest.token_ids.insert(manifest.token_ids.end(), tokens.begin(), tokens.end());
  }
  manifest.extents = std::move(lease->extents);
  const std::uint64_t writing_id = next_id_++;
  send_(from.process.worker, SnapshotFrame{writing_id, manifest});
  writings_.emplace(writing_id, std::move(writing));
}

void Transfers::on_snapshot_done(std::uint32_t worker, const SnapshotDoneFrame& frame) {
  const auto found = writings_.find(frame.id);
  if (found == writings_.end() || found->second.source.worker != worker) return;
  Writing writing = std::move(found->second);
  writings_.erase(found);
  const auto fail = [&](const Error& error) {
    arena_->abandon(writing.lease, writing.source);
    for (const std::uint64_t reader : writing.readers)
      finish(reader, error);
  };
  if (!frame.error.empty()) {
    return fail(make_error(Errc::kDataLoss, "worker " + std::to_string(worker) +
                                                " wrote no snapshot: " + frame.error));
  }
  // Where the bytes lie is what was leased; only the checksums are the worker's to say.
  if (frame.manifest.extents.size() != writing.manifest.extents.size()) {
    return fail(make_error(Errc::kProtocol, "a snapshot with other extents than were leased"));
  }
  for (std::size_t i = 0; i < writing.manifest.extents.size(); ++i)
    writing.manifest.extents[i].crc32c = frame.manifest.extents[i].crc32c;
  auto snapshot = arena_->publish(writing.lease, writing.source, std::move(writing.manifest));
  if (!snapshot) return fail(snapshot.error());
  snapshots_[writing.name] = *snapshot;
  for (const std::uint64_t reader : writing.readers)
    restore(reader, *snapshot);
}

void Transfers::restore(std::uint64_t id, kvsnap::SnapshotId snapshot) {
  const auto found = moves_.find(id);
  if (found == moves_.end()) return;
  Move& move = found->second;
  auto lease = arena_->lease_for_reading(snapshot, move.to.process);
  if (!lease) return finish(id, std::move(lease).error());
  move.reading = lease->id;
  move.payload_bytes = lease->manifest.payload_bytes();
  send_(move.to.process.worker, RestoreFrame{id, std::move(lease->manifest)});
}

void Transfers::on_restore_done(std::uint32_t worker, const RestoreDoneFrame& frame) {
  const auto found = moves_.find(frame.id);
  if (found == moves_.end() || found->second.to.process.worker != worker) return;
  Move& move = found->second;
  if (!move.reading) return;
  arena_->end_reading(*move.reading);
  if (!frame.error.empty()) {
    return finish(frame.id, make_error(Errc::kDataLoss, "worker " + std::to_string(worker) +
                                                            " restored nothing: " + frame.error));
  }
  if (move.wrote && on_measured) on_measured(move.payload_bytes, loop_.now() - move.started);
  finish(frame.id, frame.num_tokens);
}

void Transfers::on_exit(kvsnap::Holder process) {
  if (arena_ == nullptr) return;
  arena_->worker_exited(process);
  const Error error = make_error(Errc::kUnavailable, "worker " + std::to_string(process.worker) +
                                                         " died while its KV was copied");
  std::vector<std::uint64_t> failed;
  std::erase_if(writings_, [&](auto& entry) {
    if (entry.second.source != process) return false;
    failed.insert(failed.end(), entry.second.readers.begin(), entry.second.readers.end());
    return true;
  });
  for (const auto& [id, move] : moves_) {
    if (move.to.process == process && move.reading) failed.push_back(id);
  }
  for (const std::uint64_t id : failed)
    finish(id, error);
}

void Transfers::finish(std::uint64_t id, Result<std::uint32_t> result) {
  const auto found = moves_.find(id);
  if (found == moves_.end()) return;
  Move move = std::move(found->second);
  moves_.erase(found);
  report(move, std::move(result));
}

void Transfers::report(Move& move, Result<std::uint32_t> result) {
  move.timer->cancel();
  if (!result) logger("pool")->warn("transfer failed: {}", result.error().to_string());
  if (const Done done = std::exchange(move.done, nullptr)) done(std::move(result));
}

}  // namespace thaw::forkpool
