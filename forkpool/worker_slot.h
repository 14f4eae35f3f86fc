#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/unique_fd.h"
#include "forkpool/backoff.h"
#include "forkpool/channel.h"
#include "forkpool/fork_pool.h"
#include "forkpool/ledger.h"
#include "forkpool/loop.h"
#include "forkpool/worker_process.h"

namespace thaw::forkpool {

/// One worker's place in the pool: its KV memory (a memory file, or device memory by descriptor)
/// and ledger, which outlive processes, and the process of now.
///
///     start() ──► booting ──ready──► ready ──► exiting ──waitid──► backing off ──► booting ...
///                    └──── deadline, fatal, end of file, signal ──────┘     stop(): ─► stopped
///
/// Nothing of a dead process's memory is used again before waitid has confirmed its exit, and what
/// it left in the socket is read first: an evict in there must not be missed. Belongs to the loop's
/// thread.
class WorkerSlot {
 public:
  enum class State { kBooting, kReady, kExiting, kBackingOff, kStopped };

  struct Death {
    std::string reason;
    bool was_ready = false;
    bool expected = false;  ///< asked to stop, and did
    bool killed = false;  ///< by SIGKILL, and not by the pool: somebody else, or want of memory
    bool spawned = true;  ///< false: there was no process; none could be made
  };
  /// Called from the loop; must not destroy the slot.
  struct Listener {
    std::function<void(std::uint32_t worker)> on_ready;
    /// Every frame that is not the slot's own business.
    std::function<void(std::uint32_t worker, Frame frame)> on_frame;
    std::function<void(std::uint32_t worker, const EngineStats& before, const EngineStats& now)>
        on_stats;
    /// The process has been waited for. The slot respawns by itself unless it was stopped.
    std::function<void(std::uint32_t worker, const Death& death)> on_death;
  };
  /// Weights in device memory, which the workers of one device share: one of them uploaded them.
  struct SharedWeights {
    DeviceMemory memory;  ///< its KV part is empty; nothing where weights_bytes is 0
    std::uint32_t from = 0;  ///< the worker that sent them
  };
  /// Descriptors of all workers, borrowed.
  struct Shared {
    int weights_fd = -1;
    int arena_fd = -1;
    /// By the names of the workers' devices and the rank; null: workers keep nothing in device
    /// memory.
    std::map<std::string, SharedWeights>* device_weights = nullptr;
    std::shared_ptr<const TokenTexts> token_texts = nullptr;  ///< null: unknown
  };

  WorkerSlot(Loop& loop, const PoolOptions& options, Shared shared, std::uint32_t worker,
             UniqueFd kv_pool, Listener listener);

  /// Deferred while its memory is held.
  void start();
  /// The KV memory as another worker may map it; of nothing where no process has told of any, or it
  /// is in parts. Its weights part is empty.
  DeviceMemory kv_memory() const;
  /// While others read published blocks of this slot's memory no new process of it starts, which
  /// might write there. Counted.
  void hold_memory() { ++holds_; }
  void release_memory();
  /// REQUIRES: ready().
  void send(const Frame& frame) { channel_->send(frame); }
  /// Channel::send_at_once(). REQUIRES: ready().
  void send_at_once(const Frame& frame) { channel_->send_at_once(frame); }
  /// Kills the process because of what it did; `trusted` is whether its ledger still is.
  void kill(const std::string& reason, bool trusted);
  /// Asks a serving process to end, kills any other. No respawn afterwards.
  void stop();
  /// stop(), by SIGKILL.
  void stop_now();

  State state() const { return state_; }
  bool ready() const { return state_ == State::kReady; }
  std::uint32_t worker() const { return worker_; }
  std::uint32_t generation() const { return generation_; }
  const ReadyFrame& hello() const { return hello_; }  ///< of the newest process that was ready
  const Ledger& ledger() const { return ledger_; }
  /// Processes do not start, again and again; it is tried on.
  bool hopeless() const;
  const std::string& last_reason() const { return last_reason_; }
  /// Kills a process that `owes` an answer, or has not taken all that it was sent, and has neither
  /// said nor read anything for `limit`. To be called every now and then.
  void check_progress(std::chrono::milliseconds limit, bool owes);
  WorkerStatus status() const;

 private:
  void spawn();
  void on_frame(Frame frame);
  void on_channel_end(const Result<void>& how);
  void on_ready(ReadyFrame ready);
  void keep(const DeviceMemory& memory);
  /// By rank, of those that something is kept for.
  std::vector<DeviceMemory> kept() const;
  DeviceMemory kept(std::uint32_t rank) const;
  /// Those of a rank on this worker's devices. REQUIRES: shared_.device_weights.
  SharedWeights& device_weights(std::uint32_t rank) const {
    return (*shared_.device_weights)[device_ + " rank " + std::to_string(rank)];
  }
  /// A rank of the former group that has not ended yet; -1: none.
  int running_rank() const;
  /// Without blaming it: it may be ending by itself.
  void end_process();
  void forget_doubtful();
  void on_exit();
  void after_exit(const WorkerProcess::Exit& how);
  void after_failed_spawn();
  void back_off();

  Loop& loop_;
  const PoolOptions& options_;
  Shared shared_;
  std::uint32_t worker_;
  std::string device_;  ///< this worker's own
  SharedFd kv_pool_;
  Listener listener_;

  State state_ = State::kBackingOff;
  bool stopping_ = false;
  bool spawned_ = false;  // generation_ counts from the first
  std::uint32_t holds_ = 0;
  bool start_when_released_ = false;
  std::uint32_t generation_ = 0;
  std::optional<WorkerProcess> process_;
  std::unique_ptr<Channel> channel_;
  std::unique_ptr<Loop::Watch> exit_watch_;
  Loop::Timer timer_;  // boot deadline, then back-off
  Backoff backoff_;
  Clock::TimePoint ready_since_;
  Clock::TimePoint quiet_since_;  // its last frame, or when it last owed nothing
  std::optional<Clock::TimePoint> unspawnable_since_;  // no process could be made since

  Ledger ledger_;
  /// By rank. Weights parts are empty; nothing where kv_bytes is 0.
  std::map<std::uint32_t, DeviceMemory> device_kv_;
  std::vector<SharedFd> ranks_;  // the other processes of this group
  std::unique_ptr<Loop::Watch> rank_watch_;
  bool trusted_ = true;  // this process's reports about blocks are believed
  bool condemned_ = false;  // the pool had a reason of its own to end this process
  bool was_ready_ = false;  // this process
  ReadyFrame hello_;
  EngineStats stats_;  // of this process
  EngineStats former_;  // counters of the processes before it
  std::uint32_t boot_failures_ = 0;
  std::string reason_;  // why this process is going
  std::string last_reason_;
};

}  // namespace thaw::forkpool
