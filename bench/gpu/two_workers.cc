#include "bench/gpu/two_workers.h"

#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <stdexcept>
#include <thread>
#include <utility>

#include <nlohmann/json.hpp>

#include "bench/gpu/timing.h"
#include "engine/base/log.h"
#include "engine/base/memory_map.h"
#include "engine/cuda/check.h"
#include "engine/cuda/stream.h"
#include "engine/cuda/vmm.h"
#include "forkpool/fork_pool.h"

namespace thaw::bench {
namespace {

using forkpool::ForkPool;
using forkpool::PoolOptions;
using forkpool::TransferWay;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::seconds kPatience{60};
constexpr TokenId kVocabulary = 128000;

/// A pool, and the tokens that its requests were sent.
class Pool {
 public:
  Pool(const TwoDeviceOptions& options, std::uint32_t workers, std::uint32_t ranks) {
    PoolOptions pool;
    pool.worker_binary = options.binary;
    pool.num_workers = workers;
    pool.tensor_parallel = ranks;
    pool.device = options.devices;
    pool.threads_per_worker = std::max(std::thread::hardware_concurrency() / 2, 1U);  // as serve
    // Far more than is used: nothing is about to be evicted, so that the workers offer nothing.
    pool.kv_bytes = std::uint64_t{16} << 30;
    pool.arena_bytes = std::uint64_t{2} << 30;
    pool.prefill_chunk_tokens = 4096;
    pool.max_model_len = 16384;
    pool.log_level = "warn";
    pool.warm_memory = true;
    UniqueFd image(::open(options.image.c_str(), O_RDONLY | O_CLOEXEC));
    if (!image) throw std::runtime_error(options.image + " cannot be opened");
    const std::uint64_t bytes = fd_size_bytes(image.get()).value();
    pool_ = ForkPool::start(pool, {std::move(image), bytes, {}}, [this](GenerateEvent event) {
              note(event);
            }).value();
    wait([&] {
      return std::ranges::all_of(pool_->status().workers,
                                 [](const WorkerStatus& worker) { return worker.ready; });
    });
  }

  ForkPool& operator*() { return *pool_; }
  ForkPool* operator->() { return pool_.get(); }

  void wait(const std::function<bool()>& condition) {
    const auto end = Clock::now() + kPatience;
    while (!condition()) {
      std::unique_lock lock(mutex_);
      changed_.wait_for(lock, std::chrono::milliseconds(1));
      if (Clock::now() > end) throw std::runtime_error("the pool did not come so far in time");
    }
  }
  void submit(std::vector<GenerateRequest> requests) {
    ForkPlan plan;
    for (GenerateRequest& request : requests)
      plan.requests.push_back({std::move(request), -1});
    pool_->submit(std::move(plan));
  }
  std::size_t count(RequestId id) {
    const std::scoped_lock lock(mutex_);
    return streams_[id].tokens.size();
  }
  /// Waits for its end. Throws where it failed.
  std::vector<TokenId> tokens(RequestId id) {
    wait([&] {
      const std::scoped_lock lock(mutex_);
      return streams_[id].ended;
    });
    const std::scoped_lock lock(mutex_);
    if (!streams_[id].error.empty()) throw std::runtime_error(streams_[id].error);
    return streams_[id].tokens;
  }

 private:
  struct Stream {
    std::vector<TokenId> tokens;
    bool ended = false;
    std::string error;
  };
  void note(const GenerateEvent& event) {
    {
      const std::scoped_lock lock(mutex_);
      Stream& stream = streams_[event_request(event)];
      if (const auto* token = std::get_if<TokenEvent>(&event))
        stream.tokens.push_back(token->token);
      if (std::holds_alternative<CompletedEvent>(event)) stream.ended = true;
      if (const auto* failed = std::get_if<FailedEvent>(&event)) {
        stream.ended = true;
        stream.error = failed->error.to_string();
      }
    }
    changed_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<RequestId, Stream> streams_;
  std::unique_ptr<ForkPool> pool_;  ///< last: it calls note()
};

GenerateRequest request_of(RequestId id, std::size_t prompt_tokens, std::uint32_t seed,
                           std::uint32_t max_tokens) {
  GenerateRequest request;
  request.id = id;
  std::mt19937 random(seed);
  for (std::size_t i = 0; i < prompt_tokens; ++i)
    request.prompt.push_back(static_cast<TokenId>(random() % kVocabulary));
  request.sampling.temperature = 0.0F;
  request.sampling.max_tokens = max_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

/// Bytes a second of one plain copy from device 0 to device 1.
double peer_copy_rate(std::size_t bytes) {
  const cuda::VmmAllocation memory = cuda::VmmAllocation::create(0, bytes).value();
  const UniqueFd descriptor = memory.export_fd().value();
  const cuda::VmmAllocation from =
      cuda::VmmAllocation::import(1, descriptor.get(), memory.size()).value();
  const cuda::VmmAllocation to = cuda::VmmAllocation::create(1, bytes).value();
  const cuda::DeviceScope scope(1);
  const cuda::Stream stream;
  std::vector<double> times(6);
  for (double& time : times) {
    time = milliseconds([&] {
      cuda::check(
          cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDefault, stream.view().get()),
          "peer copy");
      stream.synchronize();
    });
  }
  return static_cast<double>(bytes) / (median(times) * 1e-3);
}

/// Milliseconds of so many bytes from device 0 to pinned memory while as many go from there to
/// device 1: the arena's way takes no less.
double both_host_copies_ms(std::size_t bytes) {
  const cuda::VmmAllocation from = cuda::VmmAllocation::create(0, bytes).value();
  const cuda::VmmAllocation to = cuda::VmmAllocation::create(1, bytes).value();
  const auto stream_on = [](int device) {
    const cuda::DeviceScope scope(device);
    return cuda::Stream();
  };
  const cuda::Stream out = stream_on(0);
  const cuda::Stream in = stream_on(1);
  const cuda::PinnedBuffer<std::byte> host(2 * bytes);
  const auto start = [](int device, void* destination, const void* source, std::size_t size,
                        const cuda::Stream& stream) {
    const cuda::DeviceScope scope(device);
    cuda::check(cudaMemcpyAsync(destination, source, size, cudaMemcpyDefault, stream.view().get()),
                "host copy");
  };
  std::vector<double> times(6);
  for (double& time : times) {
    time = milliseconds([&] {
      start(0, host.data(), from.data(), bytes, out);
      start(1, to.data(), host.data() + bytes, bytes, in);
      out.synchronize();
      in.synchronize();
    });
  }
  return median(times);
}

std::vector<pid_t> children_of(pid_t parent) {
  std::vector<pid_t> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::ifstream file(entry.path() / "stat");
    std::string text;
    std::getline(file, text);
    const auto at = text.rfind(')');  // behind the name, which may hold anything
    if (at == std::string::npos || at + 4 >= text.size()) continue;
    if (std::stol(text.substr(at + 4)) == parent) children.push_back(std::stoi(name));
  }
  return children;
}

std::vector<std::size_t> free_bytes() {
  std::vector<std::size_t> free;
  for (int device = 0; device < 2; ++device) {
    const cuda::DeviceScope scope(device);
    std::size_t left = 0;
    std::size_t total = 0;
    cuda::check(cudaMemGetInfo(&left, &total), "memory of a device");
    free.push_back(left);
  }
  return free;
}

}  // namespace

MoveFigures measure_moves(const TwoDeviceOptions& options) {
  Pool pool(options, 2, 1);
  MoveFigures figures;
  figures.same_tokens = true;
  RequestId id = 0;
  std::uint32_t seed = 0;
  for (const TransferWay way : {TransferWay::kPeer, TransferWay::kArena}) {
    std::vector<double> times;
    for (int i = 0; i <= options.repeats; ++i) {
      GenerateRequest request = request_of(++id, options.trunk_tokens, ++seed, 1);
      request.prompt.push_back(7);
      request.worker = 0;
      pool.submit({request});
      (void)pool.tokens(id);
      const auto start = Clock::now();
      const auto moved = pool->transfer(request, 0, 1, std::chrono::seconds(20), way);
      const double took = milliseconds_since(start);
      if (!moved) throw std::runtime_error(moved.error().to_string());
      if (*moved != options.trunk_tokens) throw std::runtime_error("not all of the trunk arrived");
      if (i > 0) times.push_back(took);  // the first maps the memory
      std::vector<std::vector<TokenId>> answers;
      for (const std::uint32_t worker : {0U, 1U}) {
        request.id = ++id;
        request.worker = worker;
        request.sampling.max_tokens = 12;
        pool.submit({request});
        answers.push_back(pool.tokens(id));
      }
      figures.same_tokens = figures.same_tokens && answers[0] == answers[1];
    }
    const bool peer = way == TransferWay::kPeer;
    (peer ? figures.peer_ms : figures.arena_ms) = median(times);
    (peer ? figures.peer_worst_ms : figures.arena_worst_ms) = std::ranges::max(times);
  }
  constexpr std::size_t kKvBytesPerToken = 131072;  // of an 8B Llama in bf16
  figures.bytes = options.trunk_tokens * kKvBytesPerToken;
  figures.copy_GB_per_s = peer_copy_rate(figures.bytes) * 1e-9;
  figures.host_copies_ms = both_host_copies_ms(figures.bytes);
  return figures;
}

RankDeathFigures measure_rank_deaths(const TwoDeviceOptions& options) {
  constexpr std::uint32_t kStreams = 4;
  constexpr std::uint32_t kTokens = 400;
  RankDeathFigures figures;
  (void)free_bytes();  // this process's own contexts
  const auto started = Clock::now();
  Pool pool(options, 1, 2);
  figures.boot_ms = milliseconds_since(started);
  const auto load = [&](RequestId first) {
    std::vector<GenerateRequest> requests;
    requests.reserve(kStreams);
    for (std::uint32_t i = 0; i < kStreams; ++i)
      requests.push_back(request_of(first + i, 1500, i, kTokens));
    pool.submit(std::move(requests));
  };
  load(1);
  std::vector<std::vector<TokenId>> undisturbed;
  undisturbed.reserve(kStreams);
  for (std::uint32_t i = 0; i < kStreams; ++i)
    undisturbed.push_back(pool.tokens(1 + i));
  const std::vector<std::size_t> before = free_bytes();
  figures.same_tokens = true;
  for (int death = 0; death < 3; ++death) {
    const auto first = RequestId{100} * static_cast<RequestId>(death + 1);
    const WorkerStatus old = pool->status().workers.at(0);
    load(first);
    pool.wait([&] { return pool.count(first) >= 50; });
    const std::vector<pid_t> ranks = children_of(old.pid);
    if (ranks.empty()) throw std::runtime_error("the group has no second rank");
    ::kill(death == 1 ? old.pid : ranks.front(), SIGKILL);
    const auto killed = Clock::now();
    // What was still on its way when it died is no news.
    std::size_t had = pool.count(first);
    pool.wait([&] {
      had = std::max(had, pool.count(first));
      return pool->status().workers.at(0).pid != old.pid;
    });
    had = pool.count(first);
    pool.wait([&] { return pool->status().workers.at(0).ready; });
    figures.back_ms.push_back(milliseconds_since(killed));
    pool.wait([&] { return pool.count(first) > had; });
    figures.token_ms.push_back(milliseconds_since(killed));
    for (std::uint32_t i = 0; i < kStreams; ++i)
      figures.same_tokens = figures.same_tokens && pool.tokens(first + i) == undisturbed[i];
  }
  const std::vector<std::size_t> after = free_bytes();
  for (std::size_t device = 0; device < after.size(); ++device)
    figures.leaked_bytes.push_back(static_cast<std::int64_t>(before[device]) -
                                   static_cast<std::int64_t>(after[device]));
  return figures;
}

std::string to_json(const MoveFigures& figures) {
  return nlohmann::ordered_json{{"bytes", figures.bytes},
                                {"copy_GB_per_s", figures.copy_GB_per_s},
                                {"host_copies_ms", figures.host_copies_ms},
                                {"peer_ms", figures.peer_ms},
                                {"peer_worst_ms", figures.peer_worst_ms},
                                {"arena_ms", figures.arena_ms},
                                {"arena_worst_ms", figures.arena_worst_ms},
                                {"same_tokens", figures.same_tokens}}
      .dump(1);
}

std::string to_json(const RankDeathFigures& figures) {
  return nlohmann::ordered_json{{"back_ms", figures.back_ms},
                                {"token_ms", figures.token_ms},
                                {"boot_ms", figures.boot_ms},
                                {"leaked_bytes", figures.leaked_bytes},
                                {"same_tokens", figures.same_tokens}}
      .dump(1);
}

}  // namespace thaw::bench
