// What a move of a trunk costs besides its bytes: from one worker to another, straight and through
// the arena, on a model whose KV is so small that hardly anything is copied. This binary is its own
// worker.

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <future>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <benchmark/benchmark.h>

#include "engine/base/log.h"
#include "engine/model/model.h"
#include "forkpool/fork_pool.h"
#include "forkpool/worker/worker.h"
#include "tests/forkpool/tiny_image.h"

namespace thaw::forkpool {
namespace {

using std::chrono::seconds;

void BM_Move(benchmark::State& state, TransferWay way) {
  const auto trunk_tokens = static_cast<std::size_t>(state.range(0));
  const model::LoadedImage& image = test::tiny_image();
  const std::size_t block_bytes = model::kv_block_bytes(image.config, ops::KvDType::kBF16);
  PoolOptions options;
  options.worker_binary = std::filesystem::read_symlink("/proc/self/exe");
  options.num_workers = 2;
  options.kv_bytes = 16384 * block_bytes;
  options.arena_bytes = 4096 * block_bytes;
  options.warm_memory = true;  // a page's first touch is not what is measured
  options.log_level = "off";
  std::promise<void>* ended = nullptr;
  const auto pool =
      ForkPool::start(options, {UniqueFd(::dup(image.fd.get())), image.size_bytes, {}},
                      [&](const GenerateEvent& event) {
                        if (std::holds_alternative<CompletedEvent>(event)) ended->set_value();
                      })
          .value();
  while (!std::ranges::all_of(pool->status().workers, &WorkerStatus::ready))
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  RequestId id = 0;
  std::vector<double> times;
  for (auto _ : state) {
    GenerateRequest request;
    request.id = ++id;
    request.worker = 0;
    request.sampling.max_tokens = 1;
    for (std::size_t i = 0; i <= trunk_tokens; ++i)
      request.prompt.push_back(
          static_cast<TokenId>((i * 31 + id * 7919) % image.config.vocab_size));
    std::promise<void> end;
    ended = &end;
    ForkPlan plan;
    plan.requests.push_back({request, -1});
    pool->submit(std::move(plan));
    end.get_future().wait();
    const auto start = std::chrono::steady_clock::now();
    const auto moved = pool->transfer(request, 0, 1, seconds(20), way);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (!moved || *moved != trunk_tokens) {
      return state.SkipWithError(moved ? "not all of it arrived" : moved.error().message.c_str());
    }
    times.push_back(took.count());
    state.SetIterationTime(took.count());
  }
  std::ranges::sort(times);
  state.counters["p50_us"] = 1e6 * times[times.size() / 2];
  state.counters["bytes"] = static_cast<double>(trunk_tokens / kBlockSize * block_bytes);
}

BENCHMARK_CAPTURE(BM_Move, straight, TransferWay::kPeer)
    ->ArgNames({"tokens"})
    ->Arg(496)
    ->Arg(4000)
    ->UseManualTime()
    ->Iterations(40)
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(BM_Move, through_the_arena, TransferWay::kArena)
    ->ArgNames({"tokens"})
    ->Arg(4000)
    ->UseManualTime()
    ->Iterations(40)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace thaw::forkpool

int main(int argc, char** argv) {
  if (argc > 1 && std::string_view(argv[1]) == "worker") return thaw::forkpool::run_worker();
  thaw::set_log_level("off");
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
