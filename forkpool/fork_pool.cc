#include "forkpool/fork_pool.h"

#include <unistd.h>

#include <cerrno>
#include <future>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/base/device_name.h"
#include "engine/base/log.h"
#include "engine/base/memory_map.h"
#include "forkpool/dispatcher.h"
#include "forkpool/loop.h"
#include "kvsnap/arena.h"
#include "kvsnap/page_warmer.h"

namespace thaw::forkpool {
namespace {

// For what the loop does at the end of a wait: killing, reading what is left, reaping.
constexpr std::chrono::seconds kEndMargin{15};

}  // namespace

struct ForkPool::Impl {
  PoolOptions options;
  WeightsMemory weights;
  std::unique_ptr<kvsnap::Arena> arena;  // null: no snapshots
  UniqueFd no_arena;  // what workers get in its place
  std::map<std::string, WorkerSlot::SharedWeights> device_weights;  // the loop's thread only
  std::vector<kvsnap::PageWarmer> warmers;
  Loop loop;
  std::unique_ptr<Dispatcher> dispatcher;  // the loop's thread only

  mutable std::mutex mutex;
  PoolStatus status;  // guarded by mutex

  std::thread thread;

  ~Impl() {
    if (!thread.joinable()) return;
    auto ended = std::make_shared<std::promise<void>>();
    auto waiting = ended->get_future();
    loop.post(
        [this, ended] { dispatcher->drain(loop.now(), [ended](bool) { ended->set_value(); }); });
    if (waiting.wait_for(kEndMargin) != std::future_status::ready) {
      logger("pool")->error("workers did not end in time");
    }
    loop.stop();
    thread.join();
  }
};

ForkPool::ForkPool(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

ForkPool::~ForkPool() = default;

Result<std::unique_ptr<ForkPool>> ForkPool::start(PoolOptions options, WeightsMemory weights,
                                                  EventSink sink, StatusSink on_status) {
  const auto wrong = [](const std::string& what) {
    return make_error(Errc::kInvalidArgument, what);
  };
  if (options.num_workers == 0) return wrong("num_workers is 0; at least 1");
  if (options.max_num_seqs == 0) return wrong("max_num_seqs is 0; at least 1");
  if (options.max_boot_failures == 0) return wrong("max_boot_failures is 0; at least 1");
  if (!options.spill_directory.empty() && (options.arena_bytes == 0 || options.spill_bytes == 0)) {
    return wrong("a spill directory needs an arena and a budget: arena_bytes is " +
                 std::to_string(options.arena_bytes) + ", spill_bytes " +
                 std::to_string(options.spill_bytes));
  }
  if (options.spill_store != nullptr &&
      (options.spill_directory.empty() || options.spill_url.empty()))
    return wrong("a store for trunks needs a spill directory and a URL");
  if (::access(options.worker_binary.c_str(), X_OK) != 0) {
    return io_error("worker binary " + options.worker_binary + " cannot be run", errno);
  }
  auto impl = std::make_unique<Impl>();
  impl->options = std::move(options);
  impl->weights = std::move(weights);
  WorkerSlot::Shared shared{.weights_fd = impl->weights.fd.get()};
  shared.token_texts = impl->weights.token_texts;
  if (impl->options.arena_bytes > 0) {
    auto arena = kvsnap::Arena::create(impl->options.arena_bytes);
    if (!arena) return std::move(arena).error();
    impl->arena = std::make_unique<kvsnap::Arena>(std::move(*arena));
    shared.arena_fd = impl->arena->fd();
    logger("pool")->info("arena: {}", impl->arena->description());
  } else {
    auto empty = create_memfd("thaw-no-arena", 0);
    if (!empty) return std::move(empty).error();
    impl->no_arena = std::move(*empty);
    shared.arena_fd = impl->no_arena.get();
  }
  const auto device = parse_device(impl->options.device);
  if (!device) return device.error();
  const bool on_device = device->kind != DeviceName::Kind::kCpu;
  if (on_device) shared.device_weights = &impl->device_weights;
  // What a worker has on a device it allocates there itself.
  const std::uint64_t kv_bytes = on_device ? 0 : impl->options.kv_bytes;
  std::vector<UniqueFd> kv_pools;
  for (std::uint32_t worker = 0; worker < impl->options.num_workers; ++worker) {
    auto memory = create_memfd("thaw-kv-" + std::to_string(worker), kv_bytes);
    if (!memory) return std::move(memory).error();
    if (impl->options.warm_memory && kv_bytes > 0) {
      auto warmer = kvsnap::PageWarmer::start(memory->get());
      if (!warmer) return std::move(warmer).error();
      impl->warmers.push_back(std::move(*warmer));
    }
    kv_pools.push_back(std::move(*memory));
  }
  if (impl->options.warm_memory && impl->arena && impl->options.num_workers > 1) {
    if (auto warmed = impl->arena->warm_in_background(); !warmed) return std::move(warmed).error();
  }
  impl->dispatcher = std::make_unique<Dispatcher>(
      impl->loop, impl->options, shared, std::move(kv_pools), impl->arena.get(), std::move(sink));
  impl->dispatcher->on_change = [state = impl.get(), on_status = std::move(on_status)] {
    const PoolStatus now = state->dispatcher->status();
    {
      const std::scoped_lock lock(state->mutex);
      state->status = now;
    }
    if (on_status) on_status(now);
  };
  impl->status = impl->dispatcher->status();
  impl->loop.post([state = impl.get()] { state->dispatcher->start(); });
  impl->thread = std::thread([state = impl.get()] { state->loop.run(); });
  return std::unique_ptr<ForkPool>(new ForkPool(std::move(impl)));
}

void ForkPool::submit(ForkPlan plan) {
  // Tasks are copyable; a plan is moved through all the same.
  auto shared = std::make_shared<ForkPlan>(std::move(plan));
  impl_->loop.post([impl = impl_.get(), shared] { impl->dispatcher->submit(std::move(*shared)); });
}

void ForkPool::cancel(RequestId request) {
  impl_->loop.post([impl = impl_.get(), request] { impl->dispatcher->cancel(request); });
}

void ForkPool::end_choice(RequestId request, std::uint32_t choice) {
  impl_->loop.post(
      [impl = impl_.get(), request, choice] { impl->dispatcher->end_choice(request, choice); });
}

PoolStatus ForkPool::status() const {
  const std::scoped_lock lock(impl_->mutex);
  return impl_->status;
}

// Shared, because tasks are copied.
void ForkPool::keep(KeepTrunk trunk, TrunkDone done) {
  auto shared = std::make_shared<KeepTrunk>(std::move(trunk));
  impl_->loop.post([impl = impl_.get(), shared, done = std::move(done)] {
    impl->dispatcher->keeper().keep(*shared, done);
  });
}

void ForkPool::release(const PinId& pin) {
  impl_->loop.post([impl = impl_.get(), pin] { impl->dispatcher->keeper().release(pin); });
}

void ForkPool::save(SaveTrunk trunk, TrunkDone done) {
  auto shared = std::make_shared<SaveTrunk>(std::move(trunk));
  impl_->loop.post([impl = impl_.get(), shared, done = std::move(done)] {
    impl->dispatcher->keeper().save(*shared, done);
  });
}

void ForkPool::load(LoadTrunk trunk, TrunkDone done) {
  auto shared = std::make_shared<LoadTrunk>(std::move(trunk));
  impl_->loop.post([impl = impl_.get(), shared, done = std::move(done)] {
    impl->dispatcher->keeper().load(*shared, done);
  });
}

bool ForkPool::shutdown(std::chrono::milliseconds deadline) {
  auto clean = std::make_shared<std::promise<bool>>();
  auto ended = clean->get_future();
  impl_->loop.post([impl = impl_.get(), clean, until = impl_->loop.now() + deadline] {
    impl->dispatcher->drain(until,
                            [clean](bool nothing_killed) { clean->set_value(nothing_killed); });
  });
  if (ended.wait_for(deadline + kEndMargin) != std::future_status::ready) return false;
  return ended.get();
}

Result<std::uint32_t> ForkPool::transfer(const GenerateRequest& like, std::uint32_t from,
                                         std::uint32_t to, std::chrono::milliseconds deadline,
                                         TransferWay way) {
  auto arrived = std::make_shared<std::promise<Result<std::uint32_t>>>();
  auto ended = arrived->get_future();
  impl_->loop.post([impl = impl_.get(), like, from, to, way, deadline, arrived] {
    impl->dispatcher->transfer(
        like, from, to, way, deadline,
        [arrived](Result<std::uint32_t> result) { arrived->set_value(std::move(result)); });
  });
  // As everybody on the way does: who sleeps wakes tens of microseconds late.
  if (impl_->options.device != "cpu") {
    const auto awake_until = std::chrono::steady_clock::now() + kMoveAwake;
    while (ended.wait_for(std::chrono::seconds(0)) != std::future_status::ready &&
           std::chrono::steady_clock::now() < awake_until)
      std::this_thread::yield();
  }
  if (ended.wait_for(deadline + kEndMargin) != std::future_status::ready) {
    return make_error(Errc::kDeadlineExceeded, "the pool did not answer in time");
  }
  return ended.get();
}

}  // namespace thaw::forkpool
