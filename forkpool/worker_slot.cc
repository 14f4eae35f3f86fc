#include "forkpool/worker_slot.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "engine/base/device_name.h"
#include "engine/base/log.h"
#include "engine/base/memory_map.h"

namespace thaw::forkpool {
namespace {

constexpr std::uint32_t kFailuresBeforeNewWeights = 2;

EngineStats with_counters_of(EngineStats stats, const EngineStats& former) {
  add_counters(stats, former);
  return stats;
}

/// Where rates alone decide, what takes less than a few blocks is still not worth a frame.
std::uint32_t offer_min_tokens(const PoolOptions& options) {
  constexpr std::uint32_t kLeast = 4 * kBlockSize;
  return options.arena_bytes == 0 ? 0 : std::max(kLeast, options.fork_min_prefix_tokens);
}

}  // namespace

WorkerSlot::WorkerSlot(Loop& loop, const PoolOptions& options, Shared shared, std::uint32_t worker,
                       UniqueFd kv_pool, Listener listener)
    : loop_(loop),
      options_(options),
      shared_(shared),
      worker_(worker),
      kv_pool_(std::make_shared<const UniqueFd>(std::move(kv_pool))),
      listener_(std::move(listener)),
      timer_(loop),
      backoff_(options.respawn) {
  // A device that cannot be read is the pool's error, before there is a slot.
  if (const auto all = parse_device(options.device))
    device_ = to_string(devices_of_worker(*all, worker, options.tensor_parallel));
}

void WorkerSlot::release_memory() {
  if (--holds_ == 0 && std::exchange(start_when_released_, false)) start();
}

DeviceMemory WorkerSlot::kv_memory() const {
  if (shared_.device_weights != nullptr) {
    const auto found = device_kv_.find(0);
    return found == device_kv_.end() ? DeviceMemory{} : found->second;
  }
  DeviceMemory memory;
  const auto bytes = fd_size_bytes(kv_pool_->get());
  if (!bytes || *bytes == 0) return memory;
  memory.device = device_;
  memory.kv_bytes = *bytes;
  memory.kv_layout = hello_.kv_layout;
  memory.block_bytes = hello_.block_bytes;
  memory.kv = kv_pool_;
  return memory;
}

void WorkerSlot::start() {
  if (stopping_) return;
  if (holds_ > 0) {
    start_when_released_ = true;
    return;
  }
  if (spawned_) ++generation_;
  spawned_ = true;
  spawn();
}

void WorkerSlot::spawn() {
  reason_.clear();
  was_ready_ = false;
  trusted_ = true;
  condemned_ = false;
  stats_ = {};
  int ends[2];
  Result<WorkerProcess> process = [&]() -> Result<WorkerProcess> {
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
      return io_error("socketpair", errno);
    }
    const UniqueFd theirs(ends[1]);
    channel_ = std::make_unique<Channel>(
        loop_, UniqueFd(ends[0]),
        Channel::Callbacks{[this](Frame frame) { on_frame(std::move(frame)); },
                           [this](const Result<void>& how) { on_channel_end(how); }});
    return WorkerProcess::spawn({options_.worker_binary, theirs.get(), shared_.weights_fd,
                                 kv_pool_->get(), shared_.arena_fd});
  }();
  if (!process) {
    channel_.reset();
    reason_ = process.error().message;
    return after_failed_spawn();
  }
  unspawnable_since_.reset();
  process_.emplace(std::move(*process));
  state_ = State::kBooting;
  logger("pool")->info("worker={} generation={} pid={} spawned", worker_, generation_,
                       process_->pid());
  exit_watch_ = std::make_unique<Loop::Watch>(loop_, process_->pidfd());
  exit_watch_->wait_readable([this] { on_exit(); });
  timer_.start(loop_.now() + options_.boot_deadline, [this] {
    kill("was not ready within " + std::to_string(options_.boot_deadline.count()) + " ms", true);
  });
  channel_->start();
  channel_->send(InitFrame{.worker = worker_,
                           .generation = generation_,
                           .device = device_,
                           .num_threads = options_.threads_per_worker,
                           .isa = options_.isa,
                           .kv_dtype = options_.kv_dtype,
                           .kv_bytes = options_.kv_bytes,
                           .max_num_seqs = options_.max_num_seqs,
                           // The pool holds back what is more, so a worker never refuses.
                           .max_waiting = options_.max_num_seqs + options_.max_waiting,
                           .prefill_chunk_tokens = options_.prefill_chunk_tokens,
                           .max_model_len = options_.max_model_len,
                           .tp_rank = 0,
                           .tp_size = options_.tensor_parallel,
                           .log_level = options_.log_level,
                           .offer_min_tokens = offer_min_tokens(options_)});
  if (shared_.token_texts != nullptr) channel_->send(VocabularyFrame{shared_.token_texts});
  for (DeviceMemory& memory : kept())
    channel_->send(InheritFrame{std::move(memory)});
  channel_->send(AdoptFrame{ledger_.adoptable(kMaxListItems)});
}

void WorkerSlot::on_frame(Frame frame) {
  if (!trusted_) return;
  quiet_since_ = loop_.now();
  if (const auto* publish = std::get_if<PublishFrame>(&frame)) {
    ledger_.publish(publish->blocks);
  } else if (const auto* evict = std::get_if<EvictFrame>(&frame)) {
    ledger_.evict(evict->hashes);
  } else if (const auto* stats = std::get_if<StatsFrame>(&frame)) {
    const EngineStats before = std::exchange(stats_, stats->stats);
    listener_.on_stats(worker_, before, stats_);
  } else if (const auto* keep_frame = std::get_if<KeepFrame>(&frame)) {
    if (was_ready_) return kill("sent a keep frame after it was ready", false);
    keep(keep_frame->memory);
  } else if (const auto* rank = std::get_if<RankFrame>(&frame)) {
    if (ranks_.size() + 1 >= options_.tensor_parallel)
      return kill("sent a rank frame, but has " + std::to_string(options_.tensor_parallel) +
                      " ranks in all",
                  false);
    ranks_.push_back(rank->process);
  } else if (auto* ready = std::get_if<ReadyFrame>(&frame)) {
    if (was_ready_) return kill("sent a second ready frame", false);
    if (state_ == State::kBooting) on_ready(std::move(*ready));
  } else if (const auto* fatal = std::get_if<FatalFrame>(&frame)) {
    kill("gave up: " + fatal->error.to_string(), true);
  } else if (frame_type(frame) < 16) {
    kill(std::string("sent a ") + frame_name(frame) + " frame, which only the pool may send",
         false);
  } else if (was_ready_) {
    listener_.on_frame(worker_, std::move(frame));
  } else {
    kill(std::string("sent a ") + frame_name(frame) + " frame before it was ready", false);
  }
}

void WorkerSlot::on_ready(ReadyFrame ready) {
  timer_.cancel();
  hello_ = std::move(ready);
  was_ready_ = true;
  state_ = State::kReady;
  ready_since_ = loop_.now();
  boot_failures_ = 0;
  // It says which offered blocks it refused by evict; if the counts differ nothing of the ledger
  // can be relied upon, since a block that it holds for free may be written without a word.
  if (hello_.adopted_blocks != ledger_.size()) {
    logger("pool")->warn("worker={} adopted={} offered={}: ledger dropped", worker_,
                         hello_.adopted_blocks, ledger_.size());
    ledger_.clear();
  }
  logger("pool")->info("worker={} generation={} ready blocks={} adopted={} fingerprint={}", worker_,
                       generation_, hello_.num_blocks, hello_.adopted_blocks,
                       hello_.system_fingerprint);
  listener_.on_ready(worker_);
}

void WorkerSlot::keep(const DeviceMemory& memory) {
  if (shared_.device_weights == nullptr) {
    return kill("sent a keep frame, but its device is " + device_, false);
  }
  logger("pool")->info("worker={} keeps weights_mib={} kv_mib={} of device={}", worker_,
                       memory.weights_bytes >> 20, memory.kv_bytes >> 20, memory.device);
  if (memory.rank >= options_.tensor_parallel) {
    return kill("keeps memory of rank " + std::to_string(memory.rank) + " of " +
                    std::to_string(options_.tensor_parallel),
                false);
  }
  if (memory.weights_bytes > 0) {
    DeviceMemory& weights = device_weights(memory.rank).memory;
    weights = memory;
    device_weights(memory.rank).from = worker_;
    weights.kv.reset();
    weights.kv_bytes = 0;
  }
  if (memory.kv_bytes > 0) {
    DeviceMemory& kv = device_kv_[memory.rank] = memory;
    kv.weights.reset();
    kv.weights_bytes = 0;
  }
}

std::vector<DeviceMemory> WorkerSlot::kept() const {
  std::vector<DeviceMemory> all;
  if (shared_.device_weights == nullptr) return all;
  for (std::uint32_t rank = 0; rank < options_.tensor_parallel; ++rank) {
    DeviceMemory memory = kept(rank);
    if (memory.weights_bytes > 0 || memory.kv_bytes > 0) all.push_back(std::move(memory));
  }
  return all;
}

DeviceMemory WorkerSlot::kept(std::uint32_t rank) const {
  DeviceMemory memory = device_weights(rank).memory;
  const auto found = device_kv_.find(rank);
  if (found == device_kv_.end()) return memory;
  const DeviceMemory& kv = found->second;
  if (memory.weights_bytes == 0) return kv;
  if (memory.device != kv.device) return memory;  // never the KV of another device
  memory.kv = kv.kv;
  memory.kv_bytes = kv.kv_bytes;
  memory.kv_layout = kv.kv_layout;
  memory.block_bytes = kv.block_bytes;
  return memory;
}

// After a process that broke the protocol or was never ready. Weights are compared with their
// digest before they are used, and other workers may hold them, so they stay: but for those that a
// process sent which cannot be believed, and where processes keep failing.
void WorkerSlot::forget_doubtful() {
  ledger_.clear();
  device_kv_.clear();
  if (shared_.device_weights == nullptr) return;
  for (std::uint32_t rank = 0; rank < options_.tensor_parallel; ++rank) {
    SharedWeights& weights = device_weights(rank);
    const bool disbelieved = !trusted_ && weights.from == worker_;
    if (disbelieved || boot_failures_ >= kFailuresBeforeNewWeights) weights.memory = {};
  }
}

int WorkerSlot::running_rank() const {
  for (const SharedFd& rank : ranks_) {
    pollfd ended{rank->get(), POLLIN, 0};
    static_cast<void>(::poll(&ended, 1, 0));
    if (ended.revents == 0) return rank->get();
  }
  return -1;
}

void WorkerSlot::on_channel_end(const Result<void>& how) {
  if (how) {
    // A worker that was asked to stop closes the channel just before it ends.
    if (!stopping_) end_process();
  } else if (how.error().code == Errc::kProtocol) {
    kill("broke the protocol: " + how.error().message, false);
  } else {
    logger("pool")->warn("worker={} its channel failed: {}", worker_, how.error().message);
    end_process();
  }
}

void WorkerSlot::kill(const std::string& reason, bool trusted) {
  trusted_ = trusted_ && trusted;
  if (process_ && !std::exchange(condemned_, true)) reason_ = reason;
  end_process();
}

void WorkerSlot::end_process() {
  if (!process_) return;
  if (state_ != State::kStopped) state_ = State::kExiting;
  process_->kill();
}

void WorkerSlot::stop() {
  const bool serving = ready();
  stopping_ = true;
  if (!process_) {
    timer_.cancel();
    state_ = State::kStopped;
  } else if (serving) {
    channel_->send(ShutdownFrame{});
    state_ = State::kExiting;
  } else {
    process_->kill();
    state_ = State::kExiting;
  }
}

void WorkerSlot::stop_now() {
  stopping_ = true;
  if (!process_) return stop();
  state_ = State::kExiting;
  process_->kill();
}

void WorkerSlot::on_exit() {
  if (!process_) return;
  const auto& exit = process_->try_wait();
  if (!exit) return exit_watch_->wait_readable([this] { on_exit(); });
  channel_->drain();
  // Its other ranks die with it, and until they have a kernel of theirs may write.
  if (const int rank = running_rank(); rank >= 0) {
    (void)::syscall(SYS_pidfd_send_signal, rank, SIGKILL, nullptr, 0);
    rank_watch_ = std::make_unique<Loop::Watch>(loop_, rank);
    return rank_watch_->wait_readable([this] { on_exit(); });
  }
  const WorkerProcess::Exit how = *exit;
  logger("pool")->log(stopping_ ? spdlog::level::info : spdlog::level::warn,
                      "worker={} generation={} pid={} {}{}{}", worker_, generation_,
                      process_->pid(), how.text, condemned_ ? ": " : "", reason_);
  if (!condemned_) reason_ = how.text;
  timer_.cancel();
  exit_watch_.reset();
  channel_.reset();
  process_.reset();
  rank_watch_.reset();
  ranks_.clear();
  after_exit(how);
}

void WorkerSlot::after_exit(const WorkerProcess::Exit& how) {
  former_ = with_counters_of(std::exchange(stats_, {}), former_);
  last_reason_ = reason_;
  if (!was_ready_) ++boot_failures_;
  // A process that died over what it was given to adopt must not doom its successors.
  if (!trusted_ || !was_ready_) forget_doubtful();
  const Death death{reason_, was_ready_, stopping_ && how.clean, how.killed && !condemned_};
  if (stopping_)
    state_ = State::kStopped;
  else
    back_off();
  was_ready_ = false;
  listener_.on_death(worker_, death);
}

// There was no process: what the last one left is as it was, and neither it nor the model is to
// blame. The machine is out of descriptors, processes or memory, which passes.
void WorkerSlot::after_failed_spawn() {
  last_reason_ = reason_;
  if (!unspawnable_since_) unspawnable_since_ = loop_.now();
  logger("pool")->error("worker={} cannot be started: {}", worker_, reason_);
  back_off();
  listener_.on_death(worker_, {.reason = reason_, .spawned = false});
}

void WorkerSlot::back_off() {
  state_ = State::kBackingOff;
  const auto now = loop_.now();
  const auto delay = backoff_.after_death(was_ready_, ready_since_, now);
  logger("pool")->info("worker={} respawn_in_ms={}", worker_, delay.count());
  timer_.start(now + delay, [this] { start(); });
}

bool WorkerSlot::hopeless() const {
  return boot_failures_ >= options_.max_boot_failures ||
         (unspawnable_since_ && loop_.now() - *unspawnable_since_ >= options_.boot_deadline);
}

void WorkerSlot::check_progress(std::chrono::milliseconds limit, bool owes) {
  if (!ready()) return;
  if (!owes && channel_->unsent_bytes() == 0) {
    quiet_since_ = loop_.now();
    return;
  }
  const auto last_sign = std::max(quiet_since_, channel_->last_progress());
  if (loop_.now() - last_sign < limit) return;
  kill("has said and read nothing for " + std::to_string(limit.count()) + " ms", true);
}

WorkerStatus WorkerSlot::status() const {
  WorkerStatus status;
  status.worker = worker_;
  status.pid = process_ ? process_->pid() : 0;
  status.ready = ready();
  status.generation = generation_;
  status.adopted_blocks = hello_.adopted_blocks;
  status.stats = with_counters_of(stats_, former_);
  status.system_fingerprint = hello_.system_fingerprint;
  return status;
}

}  // namespace thaw::forkpool
