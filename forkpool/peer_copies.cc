#include "forkpool/peer_copies.h"

#include <algorithm>
#include <string>

#include "engine/base/log.h"

namespace thaw::forkpool {
namespace {

constexpr int kMostFailures = 2;

}  // namespace

bool PeerCopies::possible(const End& from, const End& to) const {
  if (from.kv_layout != to.kv_layout || from.block_bytes != to.block_bytes) return false;
  const auto failed = failures_.find({from.process.worker, to.process.worker});
  if (failed != failures_.end() && failed->second >= kMostFailures) return false;
  return slots_.kv_memory(from.process.worker).kv_bytes > 0;
}

void PeerCopies::start(const End& from, const End& to, PrefixNames& names, std::size_t num_blocks,
                       std::chrono::milliseconds deadline, Done done) {
  const std::uint64_t id = next_id_++;
  Copy& copy = copies_[id];
  copy.from = from;
  copy.to = to;
  copy.num_blocks = num_blocks;
  copy.done = std::move(done);
  copy.started = loop_.now();
  copy.timer = std::make_unique<Loop::Timer>(loop_);
  copy.timer->start(copy.started + deadline, [this, id] {
    const auto late = copies_.find(id);
    if (late == copies_.end()) return;
    const Error error = make_error(Errc::kDeadlineExceeded, "the KV did not arrive in time");
    if (late->second.lent)
      report(late->second, error);  // the target reads
    else
      finish(id, error);
  });
  slots_.hold(from.process.worker, true);
  const Ledger& ledger = slots_.ledger(from.process.worker);
  copy.told = ledger.alive_blocks(names, num_blocks);
  copy.version = ledger.version();
  if (copy.told.size() != num_blocks) copy.told.clear();
  for (std::size_t block = 0; block < copy.told.size(); ++block)
    copy.names.push_back(names.name(block));
  introduce(copy);
  const auto tokens = names.first_tokens(num_blocks);
  BorrowFrame borrow{
      id, from.process.worker, names.root(), {tokens.begin(), tokens.end()}, copy.told};
  slots_.send(to.process.worker, borrow);
  slots_.send(from.process.worker, LendFrame{id, names.root(), std::move(borrow.token_ids)});
}

void PeerCopies::introduce(const Copy& copy) {
  const std::uint32_t from = copy.from.process.worker;
  Introduction& known = introductions_[{from, copy.to.process.worker}];
  DeviceMemory memory = slots_.kv_memory(from);
  if (known.memory == memory.kv && known.generation == copy.to.process.generation) return;
  known = {copy.to.process.generation, memory.kv};
  slots_.send(copy.to.process.worker, PeerFrame{from, std::move(memory)});
}

void PeerCopies::on_lent(std::uint32_t worker, const LentFrame& frame) {
  const auto found = copies_.find(frame.id);
  if (found == copies_.end() || found->second.from.process.worker != worker || found->second.lent)
    return;
  Copy& copy = found->second;
  if (!frame.error.empty()) {
    return finish(frame.id, make_error(Errc::kNotFound, "worker " + std::to_string(worker) +
                                                            " lends nothing: " + frame.error));
  }
  if (frame.blocks.size() != copy.num_blocks) {
    return finish(frame.id, make_error(Errc::kProtocol, "other blocks were lent than asked for"));
  }
  copy.lent = true;
  const bool held = frame.blocks == copy.told &&
                    slots_.ledger(worker).unmoved(copy.names, copy.told, copy.version);
  slots_.send(copy.to.process.worker, held ? LentFrame{frame.id, "", {}} : frame);
}

bool PeerCopies::waits_for(std::uint32_t worker) const {
  return std::ranges::any_of(copies_, [&](const auto& entry) {
    const Copy& copy = entry.second;
    return worker == (copy.lent ? copy.to : copy.from).process.worker;
  });
}

void PeerCopies::on_restore_done(std::uint32_t worker, const RestoreDoneFrame& frame) {
  const auto found = copies_.find(frame.id);
  if (found == copies_.end() || found->second.to.process.worker != worker) return;
  const Copy& copy = found->second;
  int& failures = failures_[{copy.from.process.worker, worker}];
  if (!frame.error.empty()) {
    ++failures;
    return finish(frame.id,
                  make_error(Errc::kUnsupported, "worker " + std::to_string(worker) +
                                                     " borrowed nothing: " + frame.error));
  }
  if (!copy.lent) {
    return finish(frame.id, make_error(Errc::kProtocol, "worker " + std::to_string(worker) +
                                                            " borrowed what was not lent"));
  }
  failures = 0;
  ++num_copies_;
  const std::uint64_t bytes = copy.num_blocks * copy.to.block_bytes;
  copied_bytes_ += bytes;
  if (on_measured) on_measured(bytes, loop_.now() - copy.started);
  finish(frame.id, frame.num_tokens);
}

void PeerCopies::on_exit(kvsnap::Holder process) {
  std::vector<std::uint64_t> ended;
  for (const auto& [id, copy] : copies_) {
    // What is being copied out of a dead source's memory goes on: the bytes are there.
    if (copy.to.process == process || (copy.from.process == process && !copy.lent))
      ended.push_back(id);
  }
  for (const std::uint64_t id : ended) {
    finish(id, make_error(Errc::kUnavailable, "worker " + std::to_string(process.worker) +
                                                  " died while its KV was copied"));
  }
  std::erase_if(failures_, [&](const auto& entry) {
    return entry.first.first == process.worker || entry.first.second == process.worker;
  });
  // Memory that the pool has given up is not kept alive by those who have mapped it.
  const SharedFd memory = slots_.kv_memory(process.worker).kv;
  std::erase_if(introductions_, [&](const auto& entry) {
    const auto& [pair, known] = entry;
    if (pair.second == process.worker) return true;
    if (pair.first != process.worker || known.memory == memory) return false;
    slots_.send(pair.second, PeerFrame{process.worker, {}});
    return true;
  });
}

void PeerCopies::finish(std::uint64_t id, Result<std::uint32_t> result) {
  auto found = copies_.extract(id);
  if (found.empty()) return;
  Copy& copy = found.mapped();
  if (!copy.lent && !result) {
    slots_.send(copy.to.process.worker, LentFrame{id, result.error().message, {}});
  }
  slots_.send(copy.from.process.worker, TakeBackFrame{id});
  slots_.hold(copy.from.process.worker, false);
  report(copy, std::move(result));
}

void PeerCopies::report(Copy& copy, Result<std::uint32_t> result) {
  copy.timer->cancel();
  if (!result) logger("pool")->warn("peer copy failed: {}", result.error().to_string());
  if (const Done done = std::exchange(copy.done, nullptr)) done(std::move(result));
}

}  // namespace thaw::forkpool
