#include "kvsnap/overlapped_pipeline.h"

#include <sys/prctl.h>

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "engine/base/crc32c.h"
#include "engine/base/log.h"

namespace thaw::kvsnap {
namespace {

// One thread's step, some 30 microseconds: the last ones end together.
constexpr std::size_t kCrewSliceBytes = std::size_t{256} << 10;
// Between two looks at an engine that has nothing new: a chunk takes some 150 microseconds.
constexpr std::chrono::microseconds kEngineNap{10};
// Awake for a launch that was said to come.
constexpr std::chrono::microseconds kExpectation{1000};
// Between two looks at a peer that is slow to wake.
constexpr std::chrono::milliseconds kWakingNap{10};
constexpr std::chrono::seconds kCollectMargin{5};

/// As long, but not a moment longer: a thread that sleeps may wake up several naps later. Whoever
/// else wants the core has it.
void stay_awake() {
  const auto end = std::chrono::steady_clock::now() + kEngineNap;
  do {
    std::this_thread::yield();
  } while (std::chrono::steady_clock::now() < end);
}

/// Which slices the chunks are cut into, for the crew; in order.
struct Slices {
  std::vector<std::span<const std::byte>> bytes;
  std::vector<std::size_t> extent;  ///< of each slice
  std::vector<std::size_t> end_of_chunk;  ///< slices up to the end of each chunk

  explicit Slices(const std::vector<CopyChunk>& chunks) {
    for (const CopyChunk& chunk : chunks) {
      for (std::size_t at = 0; at < chunk.arena.size(); at += kCrewSliceBytes) {
        bytes.push_back(
            chunk.arena.subspan(at, std::min(kCrewSliceBytes, chunk.arena.size() - at)));
        extent.push_back(chunk.extent);
      }
      end_of_chunk.push_back(bytes.size());
    }
  }
};

Error late(std::size_t arrived, std::size_t chunks, std::chrono::milliseconds deadline) {
  return make_error(Errc::kDeadlineExceeded, std::to_string(arrived) + " of " +
                                                 std::to_string(chunks) +
                                                 " parts of a copy are done after " +
                                                 std::to_string(deadline.count()) + " ms");
}

}  // namespace

OverlappedPipeline::OverlappedPipeline(std::unique_ptr<CopyEngine> engine,
                                       const OverlapOptions& options)
    : engine_(std::move(engine)),
      options_(options),
      crew_(options.num_threads),
      thread_([this] { serve(); }) {}

OverlappedPipeline::~OverlappedPipeline() {
  {
    const std::scoped_lock lock(mutex_);
    stopping_ = true;
  }
  work_.notify_one();
  thread_.join();
}

Result<CopyHandle> OverlappedPipeline::launch(CopyDirection direction,
                                              std::vector<ExtentCopy> extents) {
  auto fence = engine_->fence();
  if (!fence) return fence.error();
  CopyHandle handle = 0;
  {
    const std::scoped_lock lock(mutex_);
    if (broken_) return *broken_;
    handle = ++last_handle_;
    results_.emplace(handle, std::nullopt);
    queue_.push_back({handle, direction, std::move(extents), std::move(*fence)});
  }
  work_.notify_one();
  return handle;
}

void OverlappedPipeline::expect(std::shared_ptr<const std::byte> peer) {
  {
    const std::scoped_lock lock(mutex_);
    expecting_ = true;
    if (peer) std::swap(expected_peer_, peer);  // what was expected goes without the lock
  }
  work_.notify_one();
}

bool OverlappedPipeline::done(CopyHandle handle) const {
  const std::scoped_lock lock(mutex_);
  const auto found = results_.find(handle);
  return found == results_.end() || found->second.has_value();
}

std::vector<std::uint32_t> OverlappedPipeline::checked(CopyHandle handle) const {
  const std::scoped_lock lock(mutex_);
  const auto found = checked_.find(handle);
  return found == checked_.end() ? Checksums{} : found->second;
}

void OverlappedPipeline::tell(Running& running, std::size_t count) {
  if (count == running.told) return;
  running.told = count;
  const std::scoped_lock lock(mutex_);
  checked_[running.job.handle].assign(
      running.checksums.begin(), running.checksums.begin() + static_cast<std::ptrdiff_t>(count));
}

Result<std::vector<std::uint32_t>> OverlappedPipeline::collect(CopyHandle handle) {
  std::unique_lock lock(mutex_);
  const auto found = results_.find(handle);
  if (found == results_.end()) {
    return make_error(Errc::kInternal,
                      "copy " + std::to_string(handle) + " was never launched, or collected");
  }
  // Each copy before it may take its whole time.
  const auto pending =
      std::ranges::count_if(results_, [](const auto& entry) { return !entry.second.has_value(); });
  const auto patience = options_.deadline * pending + kCollectMargin;
  std::optional<Result<Checksums>>& slot = found->second;
  finished_.wait_for(lock, patience, [&] { return slot.has_value(); });
  if (!slot) {
    broken_ = make_error(Errc::kDeadlineExceeded,
                         "copy " + std::to_string(handle) + " is not done after " +
                             std::to_string(patience / std::chrono::milliseconds(1)) + " ms");
    return *broken_;
  }
  Result<Checksums> result = *std::move(slot);
  results_.erase(found);
  checked_.erase(handle);
  return result;
}

void OverlappedPipeline::serve() {
  // The kernel rounds a sleep up by 50 microseconds otherwise. Of this thread only.
  (void)::prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  const auto attached = engine_->attach_thread();
  std::unique_lock lock(mutex_);
  if (!attached) broken_ = attached.error();
  while (true) {
    const auto called = [&] {
      return stopping_ || !queue_.empty() || expecting_ || expected_peer_;
    };
    if (waking_peer_)
      work_.wait_for(lock, kWakingNap, called);
    else
      work_.wait(lock, called);
    if (expected_peer_) wake_peer(lock);
    if (std::exchange(expecting_, false) && queue_.empty() && !stopping_) await_job(lock);
    if (stopping_) break;
    if (!queue_.empty()) {
      Job job = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      run(std::move(job));
      lock.lock();
    }
    leave_peer(lock);
  }
  const auto end = std::chrono::steady_clock::now() + options_.deadline;
  for (; waking_peer_ && std::chrono::steady_clock::now() < end; stay_awake())
    leave_peer(lock);
}

void OverlappedPipeline::await_job(std::unique_lock<std::mutex>& lock) {
  const auto end = std::chrono::steady_clock::now() + kExpectation;
  while (queue_.empty() && !stopping_ && std::chrono::steady_clock::now() < end) {
    lock.unlock();
    stay_awake();
    lock.lock();
  }
}

void OverlappedPipeline::wake_peer(std::unique_lock<std::mutex>& lock) {
  std::shared_ptr<const std::byte> peer = std::move(expected_peer_);
  const bool wakes = !broken_ && !waking_peer_;  // one at a time; copies wake it too
  lock.unlock();
  // Where that fails the copy to come will say so.
  if (wakes && engine_->wake(peer.get())) waking_peer_ = std::move(peer);
  peer.reset();
  lock.lock();
}

void OverlappedPipeline::leave_peer(std::unique_lock<std::mutex>& lock) {
  if (!waking_peer_) return;
  lock.unlock();
  const auto awake = engine_->awake();
  std::shared_ptr<const std::byte> done;  // it may be the last of a mapping: without the lock
  if (!awake || *awake) done = std::move(waking_peer_);
  done.reset();
  lock.lock();
}

void OverlappedPipeline::finish(const Job& job, Result<Checksums> result) {
  const std::scoped_lock lock(mutex_);
  if (!result && !broken_) broken_ = result.error();
  results_[job.handle] = std::move(result);
  finished_.notify_all();
}

void OverlappedPipeline::prepare(Running& running) const {
  const Job& job = running.job;
  const bool from_peer = job.direction == CopyDirection::kFromPeer;
  const ChunkLimits& limits = from_peer ? options_.peer_chunks
                              : job.direction == CopyDirection::kFromArena
                                  ? options_.from_arena_chunks
                                  : options_.chunks;
  running.chunks = cut_into_chunks(job.direction, job.extents, limits);
  running.checksums.assign(from_peer ? 0 : job.extents.size(), 0);
}

void OverlappedPipeline::run(Job job) {
  const auto broken = [&] {
    const std::scoped_lock lock(mutex_);
    return broken_;
  }();
  if (broken) return finish(job, *broken);
  std::deque<Running> running;
  running.emplace_back().job = std::move(job);
  Result<void> ran;
  try {
    prepare(running.front());
    if (streams(running.front())) {
      ran = stream(running);
    } else {
      ran = copy(running.front());
      crew_.end();
      if (ran) finish(running.front().job, std::move(running.front().checksums));
    }
  } catch (const Exception& failure) {
    ran = failure.error();
  } catch (const std::exception& failure) {
    ran = make_error(Errc::kInternal, failure.what());
  }
  if (ran) return;
  for (const Running& left : running)
    finish(left.job, ran.error());
}

bool OverlappedPipeline::take_follower(std::deque<Running>& running) {
  {
    const std::scoped_lock lock(mutex_);
    if (stopping_ || queue_.empty() || queue_.front().direction == CopyDirection::kToArena)
      return false;
    running.emplace_back().job = std::move(queue_.front());
    queue_.pop_front();
  }
  prepare(running.back());
  if (streams(running.back())) return true;
  const std::scoped_lock lock(mutex_);
  queue_.push_front(std::move(running.back().job));
  running.pop_back();
  return false;
}

Result<void> OverlappedPipeline::start_chunks(Running& running, std::size_t& in_flight,
                                              std::size_t& next_slot) {
  const std::size_t slots = engine_->num_slots();
  for (; running.started < running.chunks.size() && in_flight < slots; ++running.started) {
    const auto& copies = running.chunks[running.started].copies;
    if (auto begun = engine_->start(next_slot, running.job.direction, copies); !begun) return begun;
    next_slot = (next_slot + 1) % slots;
    ++in_flight;
  }
  return {};
}

Result<void> OverlappedPipeline::stream(std::deque<Running>& running) {
  const std::size_t slots = engine_->num_slots();
  std::size_t in_flight = 0;  // chunks, of all that run
  std::size_t next_slot = 0;
  if (auto ordered = engine_->wait_for(*running.front().job.fence); !ordered) return ordered;
  auto end = std::chrono::steady_clock::now() + options_.deadline;  // of the first's turn
  while (!running.empty()) {
    if (auto begun = start_chunks(running.back(), in_flight, next_slot); !begun) return begun;
    if (running.back().started == running.back().chunks.size() && in_flight < slots) {
      if (take_follower(running)) {
        if (auto ordered = engine_->wait_for(*running.back().job.fence); !ordered) return ordered;
        continue;
      }
    }
    Running& first = running.front();
    const std::size_t arrived_before = first.arrived;
    for (; first.arrived < first.started; ++first.arrived, --in_flight) {
      const std::size_t slot = (next_slot + slots - in_flight) % slots;
      const auto there = engine_->finished(slot);
      if (!there) return there.error();
      if (!*there) break;
      if (first.job.direction == CopyDirection::kFromPeer) continue;
      const CopyChunk& chunk = first.chunks[first.arrived];
      std::uint32_t& crc = first.checksums[chunk.extent];
      crc = crc32c_combine(crc, engine_->checksum(slot, chunk.copies), chunk.arena.size());
    }
    if (first.job.direction == CopyDirection::kToArena) {
      const bool is_whole = first.arrived == first.chunks.size();
      tell(first, is_whole ? first.checksums.size() : first.chunks[first.arrived].extent);
    }
    if (first.arrived == first.chunks.size()) {
      finish(first.job, std::move(first.checksums));
      running.pop_front();
      end = std::chrono::steady_clock::now() + options_.deadline;
    } else if (first.arrived == arrived_before) {
      if (std::chrono::steady_clock::now() > end)
        return late(first.arrived, first.chunks.size(), options_.deadline);
      stay_awake();
    }
  }
  return {};
}

bool OverlappedPipeline::streams(const Running& running) const {
  return running.job.direction == CopyDirection::kFromPeer ||
         engine_checks(running.job, running.chunks);
}

bool OverlappedPipeline::engine_checks(const Job& job, const std::vector<CopyChunk>& chunks) const {
  return job.direction != CopyDirection::kFromPeer &&
         std::ranges::all_of(chunks, [&](const CopyChunk& chunk) {
           std::size_t copied = 0;  // what nobody wants is counted too, and no engine sees it
           for (const CopyPiece& copy : chunk.copies)
             copied += copy.size_bytes;
           return copied == chunk.arena.size() && engine_->can_check(job.direction, chunk.copies);
         });
}

Result<void> OverlappedPipeline::copy(Running& running) {
  static const Crc32cCombiner append_slice(kCrewSliceBytes);
  const Job& job = running.job;
  const std::vector<CopyChunk>& chunks = running.chunks;
  Checksums& checksums = running.checksums;
  if (auto ordered = engine_->wait_for(*job.fence); !ordered) return ordered;
  const auto end = std::chrono::steady_clock::now() + options_.deadline;
  const Slices slices(chunks);
  crew_.begin(slices.bytes);
  // What comes from the arena lies there from the beginning.
  if (job.direction == CopyDirection::kFromArena) crew_.allow(slices.bytes.size());
  std::size_t in_flight = 0;
  std::size_t next_slot = 0;
  std::size_t folded = 0;  // slices whose checksums are part of their extent's
  while (running.arrived < chunks.size() || folded < slices.bytes.size()) {
    if (auto begun = start_chunks(running, in_flight, next_slot); !begun) return begun;
    const std::size_t arrived_before = running.arrived;
    for (; running.arrived < running.started; ++running.arrived, --in_flight) {
      const auto there = engine_->finished(running.arrived % engine_->num_slots());
      if (!there) return there.error();
      if (!*there) break;
    }
    if (running.arrived > arrived_before && job.direction == CopyDirection::kToArena)
      crew_.allow(slices.end_of_chunk[running.arrived - 1]);
    const std::size_t folded_before = folded;
    for (; folded < slices.bytes.size() && crew_.done(folded); ++folded) {
      std::uint32_t& crc = checksums[slices.extent[folded]];
      const std::size_t size = slices.bytes[folded].size();
      crc = size == kCrewSliceBytes ? append_slice(crc, crew_.crc(folded))
                                    : crc32c_combine(crc, crew_.crc(folded), size);
    }
    if (job.direction == CopyDirection::kToArena && folded > folded_before) {
      const std::size_t count =
          folded < slices.bytes.size() ? slices.extent[folded] : job.extents.size();
      tell(running, count);
    }
    if (running.arrived > arrived_before || folded > folded_before) continue;
    if (std::chrono::steady_clock::now() > end)
      return late(running.arrived, chunks.size(), options_.deadline);
    std::this_thread::sleep_for(kEngineNap);
  }
  return {};
}

}  // namespace thaw::kvsnap
