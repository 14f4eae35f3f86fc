#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "kvsnap/checksum_crew.h"
#include "kvsnap/copy_chunks.h"
#include "kvsnap/copy_engine.h"
#include "kvsnap/copy_pipeline.h"

namespace thaw::kvsnap {

struct OverlapOptions {
  int num_threads = 4;  ///< that compute checksums; a core does some 10 GB/s from memory
  ChunkLimits chunks;  ///< of copies to the arena
  /// Of copies from it: longer calls to an engine that rests between calls.
  ChunkLimits from_arena_chunks = {std::size_t{8} << 20, 32};
  /// Of copies from a peer: faster by a factor, and checked by nobody.
  ChunkLimits peer_chunks = {std::size_t{256} << 20, 128};
  /// A copy that takes longer from its turn on has failed.
  std::chrono::milliseconds deadline{30000};
};

/// Copies by an engine, checksums by CPU threads from the arena's bytes while it copies: of every
/// chunk right after it has arrived on the way to the arena, of all bytes at once on the way from
/// it: to pace those by the copies, or the copies by them, costs more than it gains (measured). An
/// engine that can check its device's bytes does so instead of them, and leaves the memory's rate
/// to the copies. What comes from a peer has no checksums. A thread of its own feeds the engine and
/// watches it, so launch() costs its caller a mark on the device's work and nothing else. Copies
/// are served one after another; where the engine alone sees to them, the next one starts while the
/// last chunks of the one before are on their way, so that parts of a snapshot cost no more than
/// the whole.
///
/// After an error (the device's, or a missed deadline) the engine may still write: every copy from
/// then on fails, and the memory named by the failed one must stay until this process has ended.
class OverlappedPipeline final : public CopyPipeline {
 public:
  OverlappedPipeline(std::unique_ptr<CopyEngine> engine, const OverlapOptions& options);
  /// Lets the copy that runs come to its end, drops the others.
  ~OverlappedPipeline() override;
  OverlappedPipeline(const OverlappedPipeline&) = delete;
  OverlappedPipeline& operator=(const OverlappedPipeline&) = delete;

  Result<CopyHandle> launch(CopyDirection direction, std::vector<ExtentCopy> extents) override;
  void expect(std::shared_ptr<const std::byte> peer) override;
  bool done(CopyHandle handle) const override;
  std::vector<std::uint32_t> checked(CopyHandle handle) const override;
  Result<std::vector<std::uint32_t>> collect(CopyHandle handle) override;

 private:
  using Checksums = std::vector<std::uint32_t>;
  struct Job {
    CopyHandle handle = 0;
    CopyDirection direction = CopyDirection::kToArena;
    std::vector<ExtentCopy> extents;
    std::unique_ptr<CopyEngine::Fence> fence;
  };

  /// A job whose turn has come, or is about to.
  struct Running {
    Job job;
    std::vector<CopyChunk> chunks;
    Checksums checksums;
    std::size_t started = 0;  ///< chunks
    std::size_t arrived = 0;
    std::size_t told = 0;  ///< extents to the arena, as far as somebody was told
  };

  void serve();
  /// With the lock, as the two below: stays awake for a moment, or until a job has come.
  void await_job(std::unique_lock<std::mutex>& lock);
  /// Begins to wake the way to the peer that is expected.
  void wake_peer(std::unique_lock<std::mutex>& lock);
  /// Lets go of the peer's memory where the engine no longer reads it.
  void leave_peer(std::unique_lock<std::mutex>& lock);
  void run(Job job);
  /// Fills in what follows from the job.
  void prepare(Running& running) const;
  /// With checksums by the crew.
  Result<void> copy(Running& running);
  /// Without: the first of `running`, and what follows it in the queue meanwhile, until none is
  /// left.
  Result<void> stream(std::deque<Running>& running);
  Result<void> start_chunks(Running& running, std::size_t& in_flight, std::size_t& next_slot);
  /// Takes the next job behind `running`, where that can be streamed too.
  bool take_follower(std::deque<Running>& running);
  void finish(const Job& job, Result<Checksums> result);
  /// Whether nobody but the engine looks at the bytes.
  bool streams(const Running& running) const;
  /// The first `count` extents of a copy to the arena are whole.
  void tell(Running& running, std::size_t count);
  /// Whether the engine can check all of the chunks.
  bool engine_checks(const Job& job, const std::vector<CopyChunk>& chunks) const;

  std::unique_ptr<CopyEngine> engine_;
  const OverlapOptions options_;
  ChecksumCrew crew_;

  mutable std::mutex mutex_;
  std::condition_variable work_;  ///< waited for by thread_
  std::condition_variable finished_;
  std::deque<Job> queue_;  ///< guarded by mutex_, as everything below
  std::map<CopyHandle, std::optional<Result<Checksums>>> results_;  ///< no value: not done
  std::map<CopyHandle, Checksums> checked_;  ///< of the extents that are whole, until collected
  std::optional<Error> broken_;
  CopyHandle last_handle_ = 0;
  bool stopping_ = false;
  bool expecting_ = false;  ///< thread_ stays awake for a job that is about to come
  std::shared_ptr<const std::byte> expected_peer_;  ///< it has not been woken for yet
  std::shared_ptr<const std::byte> waking_peer_;  ///< thread_'s own: what the engine reads

  std::thread thread_;  ///< last: it uses all of the above
};

}  // namespace thaw::kvsnap
