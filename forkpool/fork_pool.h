#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/clock.h"
#include "engine/base/fork_plan.h"
#include "engine/base/generate.h"
#include "engine/base/pool_status.h"
#include "engine/base/result.h"
#include "engine/base/token_texts.h"
#include "engine/base/trunk_keeping.h"
#include "engine/base/unique_fd.h"
#include "forkpool/backoff.h"
#include "kvsnap/file_io.h"
#include "kvsnap/store/store.h"

namespace thaw::forkpool {

struct PoolOptions {
  std::string worker_binary;  ///< path of the `thaw` binary (its `worker` command is run)
  std::uint32_t num_workers = 1;
  /// Of all workers: each takes its ones (engine/base/device_name.h, devices_of_worker).
  std::string device = "cpu";
  std::uint32_t tensor_parallel = 1;  ///< ranks, and GPUs, of each worker
  std::uint32_t threads_per_worker = 1;
  std::string isa;
  std::string kv_dtype = "bf16";
  std::uint64_t kv_bytes = 0;  ///< KV pool of each worker; on a device 0 is what is free there
  std::uint64_t arena_bytes = 0;  ///< snapshots, all workers
  /// KV may go straight from one worker's memory to another's, where the rates prefer it.
  bool peer_copies = true;
  /// Of a snapshot that another worker restores while it is written. The last part is what both
  /// copies do not do at once; less than this would not pay for its frames.
  std::uint64_t transfer_part_bytes = std::uint64_t{12} << 20;
  std::uint32_t max_num_seqs = 64;
  std::uint32_t max_waiting = 1024;
  std::uint32_t prefill_chunk_tokens = 128;
  std::uint32_t max_model_len = 0;
  /// Shorter trunks never cross workers and are not brought back; 0: the measured rates decide.
  std::uint32_t fork_min_prefix_tokens = 500;
  std::string spill_directory;  ///< for trunks that shall outlive the server; empty: none
  std::uint64_t spill_bytes = 0;  ///< most that lies there
  /// Where trunks go that the spill directory has no room for; null: nowhere. It must outlive the
  /// pool, which uses a share() of it.
  kvsnap::Store* spill_store = nullptr;
  std::string spill_url;  ///< in that store, without a slash at its end
  std::uint64_t spill_store_bytes = 0;  ///< most that lies below it; 0: no bound
  std::chrono::milliseconds spill_list_every{300000};  ///< looks for what others put there
  bool puts_at_end = true;  ///< shutdown() waits for what is on its way to the store
  kvsnap::FileIo* file_io = nullptr;  ///< null: the system's, past the page cache; must outlive it
  std::chrono::milliseconds boot_deadline{60000};
  /// A worker that owes something and neither says nor reads anything for so long is killed. It
  /// says something after every step, and one of a large model takes minutes on few cores.
  std::chrono::milliseconds stall_limit{600000};
  std::string log_level = "info";
  Backoff::Policy respawn;
  /// When every worker has failed to start so often in a row, requests are refused and not kept
  /// waiting; the workers are tried on.
  std::uint32_t max_boot_failures = 5;
  /// Take the memory of the KV pools, and of the arena where there are several workers, ahead of
  /// its use, in the background (kvsnap/page_warmer.h).
  bool warm_memory = false;
};

/// How KV goes from one worker to another.
enum class TransferWay {
  kBest,  ///< by the measured rates, and through the arena where the straight way fails
  kPeer,  ///< straight out of the one's memory into the other's
  kArena
};

/// What every worker has of the model: weights that it maps or uploads, owned here so that they
/// outlive any worker, and what the tokens stand for.
struct WeightsMemory {
  UniqueFd fd;
  std::uint64_t size_bytes = 0;
  std::shared_ptr<const TokenTexts> token_texts;  ///< null: unknown, grammars are refused
};

/// Worker processes behind one door. Owns their memory (weights, one KV pool each, the snapshot
/// arena; device memory by the descriptors that workers send), places plans, keeps the ledger of
/// published blocks, notices deaths (pidfd, end of file), respawns with back-off, and sends what a
/// dead worker had again: from the last token sent, so a stream just goes on. Thread-safe; one
/// thread of its own runs everything.
class ForkPool {
 public:
  /// Called on the pool's thread; must not block.
  using EventSink = std::function<void(GenerateEvent)>;
  using StatusSink = std::function<void(const PoolStatus&)>;

  /// Spawns the workers and returns at once; status().ready tells when the first one serves.
  /// `on_status`, if any, is called as the event sink is, whenever status() has changed.
  static Result<std::unique_ptr<ForkPool>> start(PoolOptions options, WeightsMemory weights,
                                                 EventSink sink, StatusSink on_status = nullptr);
  /// Kills what is left and waits for it.
  ~ForkPool();

  /// Every request ends with exactly one CompletedEvent or FailedEvent. Never blocks.
  void submit(ForkPlan plan);
  void cancel(RequestId request);
  /// Nobody wants more of one choice, which has tokens: it ends with kCancelled, the others go on.
  void end_choice(RequestId request, std::uint32_t choice);
  PoolStatus status() const;

  /// Trunks kept beyond their requests (engine/base/trunk_keeping.h). No call blocks; `done` is
  /// called on the pool's thread, once, and must not block.
  void keep(KeepTrunk trunk, TrunkDone done);
  void release(const PinId& pin);
  void save(SaveTrunk trunk, TrunkDone done);
  void load(LoadTrunk trunk, TrunkDone done);

  /// Lets running requests finish, refuses new ones, ends the workers; kills what is left at the
  /// deadline. True when nothing had to be killed.
  bool shutdown(std::chrono::milliseconds deadline);

  /// Copies the KV of a prompt's whole blocks from one worker's pool to another's. Waits up to
  /// `deadline`. Returns the tokens that arrived. Errors: nothing alive under that prompt, no room,
  /// a checksum that does not match (nothing is published then).
  Result<std::uint32_t> transfer(const GenerateRequest& like, std::uint32_t from, std::uint32_t to,
                                 std::chrono::milliseconds deadline,
                                 TransferWay way = TransferWay::kBest);

 private:
  struct Impl;
  explicit ForkPool(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace thaw::forkpool
