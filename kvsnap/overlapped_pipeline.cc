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
constexpr std::size_t kSliceBytes = std::size_t{256} << 10;
// Between two looks at an engine that has nothing new: a chunk takes some 150 microseconds.
constexpr std::chrono::microseconds kNap{10};
constexpr std::chrono::seconds kCollectMargin{5};

/// Which slices the chunks are cut into, for the crew; in order.
struct Slices {
  std::vector<std::span<const std::byte>> bytes;
  std::vector<std::size_t> extent;  ///< of each slice
  std::vector<std::size_t> end_of_chunk;  ///< slices up to the end of each chunk

  explicit Slices(const std::vector<CopyChunk>& chunks) {
    for (const CopyChunk& chunk : chunks) {
      for (std::size_t at = 0; at < chunk.arena.size(); at += kSliceBytes) {
        bytes.push_back(chunk.arena.subspan(at, std::min(kSliceBytes, chunk.arena.size() - at)));
        extent.push_back(chunk.extent);
      }
      end_of_chunk.push_back(bytes.size());
    }
  }
};

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

void OverlappedPipeline::tell(const Job& job, const Checksums& checksums, std::size_t count) {
  const std::scoped_lock lock(mutex_);
  checked_[job.handle].assign(checksums.begin(),
                              checksums.begin() + static_cast<std::ptrdiff_t>(count));
}

Result<std::vector<std::uint32_t>> OverlappedPipeline::collect(CopyHandle handle) {
  std::unique_lock lock(mutex_);
  const auto found = results_.find(handle);
  if (found == results_.end()) {
    return make_error(Errc::kInternal,
                      "copy " + std::to_string(handle) + " was never launched, or collected");
  }
  // Each copy before it may take its whole time.
  const auto patience = options_.deadline * (queue_.size() + 1) + kCollectMargin;
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
    work_.wait(lock, [&] { return stopping_ || !queue_.empty(); });
    if (stopping_) return;
    const Job job = std::move(queue_.front());
    queue_.pop_front();
    std::optional<Result<Checksums>> result;
    if (broken_) {
      result = *broken_;
    } else {
      lock.unlock();
      try {
        result = run(job);
      } catch (const Exception& failure) {
        result = failure.error();
      } catch (const std::exception& failure) {
        result = make_error(Errc::kInternal, failure.what());
      }
      lock.lock();
      if (!*result) broken_ = result->error();
    }
    results_[job.handle] = std::move(result);
    finished_.notify_all();
  }
}

Result<OverlappedPipeline::Checksums> OverlappedPipeline::run(const Job& job) {
  const std::vector<CopyChunk> chunks = cut_into_chunks(
      job.direction, job.extents,
      job.direction == CopyDirection::kFromPeer ? options_.peer_chunks : options_.chunks);
  if (auto ordered = engine_->wait_for(*job.fence); !ordered) return ordered.error();
  Result<Checksums> checksums = copy(job, chunks);
  crew_.end();
  return checksums;
}

bool OverlappedPipeline::engine_checks(const Job& job, const std::vector<CopyChunk>& chunks) const {
  return job.direction == CopyDirection::kFromArena &&
         std::ranges::all_of(chunks, [&](const CopyChunk& chunk) {
           std::size_t copied = 0;  // what nobody wants is counted too, and no engine sees it
           for (const CopyPiece& copy : chunk.copies)
             copied += copy.size_bytes;
           return copied == chunk.arena.size() && engine_->can_check(chunk.copies);
         });
}

Result<OverlappedPipeline::Checksums> OverlappedPipeline::copy(
    const Job& job, const std::vector<CopyChunk>& chunks) {
  static const Crc32cCombiner append_slice(kSliceBytes);
  const auto end = std::chrono::steady_clock::now() + options_.deadline;
  const bool engine_checks = this->engine_checks(job, chunks);
  const bool from_peer = job.direction == CopyDirection::kFromPeer;
  const Slices slices(engine_checks || from_peer ? std::vector<CopyChunk>{} : chunks);
  Checksums checksums(from_peer ? 0 : job.extents.size(), 0);
  std::size_t whole = 0;  // extents, as far as somebody was told
  crew_.begin(slices.bytes);
  // What comes from the arena lies there from the beginning.
  if (job.direction == CopyDirection::kFromArena) crew_.allow(slices.bytes.size());
  std::size_t started = 0;
  std::size_t arrived = 0;
  std::size_t folded = 0;  // slices whose checksums are part of their extent's
  while (arrived < chunks.size() || folded < slices.bytes.size()) {
    while (started < chunks.size() && started - arrived < engine_->num_slots()) {
      const auto& copies = chunks[started].copies;
      if (auto begun = engine_->start(started % engine_->num_slots(), job.direction, copies);
          !begun) {
        return begun.error();
      }
      ++started;
    }
    const std::size_t arrived_before = arrived;
    while (arrived < started) {
      const auto there = engine_->finished(arrived % engine_->num_slots());
      if (!there) return there.error();
      if (!*there) break;
      if (engine_checks) {
        const CopyChunk& chunk = chunks[arrived];
        std::uint32_t& crc = checksums[chunk.extent];
        crc = crc32c_combine(crc, engine_->checksum(arrived % engine_->num_slots(), chunk.copies),
                             chunk.arena.size());
      }
      ++arrived;
    }
    if (arrived > arrived_before && job.direction == CopyDirection::kToArena)
      crew_.allow(slices.end_of_chunk[arrived - 1]);
    const std::size_t folded_before = folded;
    for (; folded < slices.bytes.size() && crew_.done(folded); ++folded) {
      std::uint32_t& crc = checksums[slices.extent[folded]];
      const std::size_t size = slices.bytes[folded].size();
      crc = size == kSliceBytes ? append_slice(crc, crew_.crc(folded))
                                : crc32c_combine(crc, crew_.crc(folded), size);
    }
    if (job.direction == CopyDirection::kToArena && folded > folded_before) {
      const std::size_t count =
          folded < slices.bytes.size() ? slices.extent[folded] : job.extents.size();
      if (count > whole) tell(job, checksums, whole = count);
    }
    if (arrived > arrived_before || folded > folded_before) continue;
    if (std::chrono::steady_clock::now() > end) {
      return make_error(Errc::kDeadlineExceeded,
                        std::to_string(arrived) + " of " + std::to_string(chunks.size()) +
                            " parts of a copy are done after " +
                            std::to_string(options_.deadline.count()) + " ms");
    }
    std::this_thread::sleep_for(kNap);
  }
  return checksums;
}

}  // namespace thaw::kvsnap
