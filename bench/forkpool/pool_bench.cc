// What the pool adds to a request: submit() to the first token, with a worker that answers at once,
// against the same worker driven by bare frames from one thread.

#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <future>
#include <string>
#include <vector>

#include <benchmark/benchmark.h>

#include "engine/base/log.h"
#include "engine/base/memory_map.h"
#include "forkpool/fork_pool.h"
#include "forkpool/protocol.h"
#include "forkpool/worker_process.h"

namespace thaw::forkpool {
namespace {

constexpr std::size_t kKvBytes = std::size_t{64} << 20;

std::string fake_worker() {
  return std::string(THAW_FAKE_WORKER);
}

GenerateRequest make_request(RequestId id, std::size_t prompt_tokens) {
  GenerateRequest request;
  request.id = id;
  request.prompt.assign(prompt_tokens, 7);
  request.sampling.max_tokens = 1;
  return request;
}

/// Median and 99th percentile beside the mean that the library prints.
void report(benchmark::State& state, std::vector<double> seconds) {
  std::ranges::sort(seconds);
  const auto at = [&](double share) {
    return 1e6 * seconds[static_cast<std::size_t>(share * static_cast<double>(seconds.size() - 1))];
  };
  state.counters["p50_us"] = at(0.5);
  state.counters["p99_us"] = at(0.99);
}

void BM_BareFrames(benchmark::State& state) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) std::abort();
  const UniqueFd ours(ends[0]);
  UniqueFd theirs(ends[1]);
  const UniqueFd memory = create_memfd("bench-kv", kKvBytes).value();
  const auto process =
      WorkerProcess::spawn({fake_worker(), theirs.get(), memory.get(), memory.get(), memory.get()})
          .value();
  theirs.reset();
  FrameDecoder decoder;
  const auto send = [&](const Frame& frame) {
    const std::string bytes = encode_frame(frame);
    for (std::size_t at = 0; at < bytes.size();)
      at += static_cast<std::size_t>(::send(ours.get(), bytes.data() + at, bytes.size() - at, 0));
  };
  const auto receive = [&]() -> Frame {
    char bytes[65536];
    for (;;) {
      auto next = decoder.next().value();
      if (next.found) return std::move(next.frame);
      const ssize_t count = ::recv(ours.get(), bytes, sizeof bytes, 0);
      if (count <= 0) std::abort();
      decoder.feed(std::span(bytes, static_cast<std::size_t>(count)));
    }
  };
  const auto has_token = [](const Frame& frame) {
    const auto* events = std::get_if<EventsFrame>(&frame);
    return events != nullptr && std::ranges::any_of(events->events, [](const auto& event) {
             return std::holds_alternative<TokenEvent>(event);
           });
  };
  send(InitFrame{});
  send(AdoptFrame{});
  receive();
  RequestId id = 0;
  std::vector<double> seconds;
  for (auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    send(SubmitFrame{make_request(++id, static_cast<std::size_t>(state.range(0)))});
    while (!has_token(receive())) {
    }
    seconds.push_back(
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    state.SetIterationTime(seconds.back());
  }
  report(state, std::move(seconds));
}

void BM_Pool(benchmark::State& state) {
  std::atomic<std::promise<void>*> first{nullptr};
  std::atomic<std::promise<void>*> last{nullptr};
  PoolOptions options;
  options.worker_binary = fake_worker();
  options.num_workers = static_cast<std::uint32_t>(state.range(1));
  options.kv_bytes = kKvBytes;
  WeightsMemory weights{create_memfd("bench-weights", 4096).value(), 4096, {}};
  const auto pool = ForkPool::start(options, std::move(weights), [&](const GenerateEvent& event) {
                      if (std::holds_alternative<TokenEvent>(event)) first.load()->set_value();
                      if (std::holds_alternative<CompletedEvent>(event)) last.load()->set_value();
                    }).value();
  RequestId id = 0;
  std::vector<double> seconds;
  const auto once = [&] {
    std::promise<void> token;
    std::promise<void> done;
    first = &token;
    last = &done;
    ForkPlan plan;
    plan.requests.push_back({make_request(++id, static_cast<std::size_t>(state.range(0))), -1});
    const auto start = std::chrono::steady_clock::now();
    pool->submit(std::move(plan));
    token.get_future().wait();
    const auto end = std::chrono::steady_clock::now();
    done.get_future().wait();
    return std::chrono::duration<double>(end - start).count();
  };
  once();  // waits for the workers
  for (auto _ : state) {
    seconds.push_back(once());
    state.SetIterationTime(seconds.back());
  }
  report(state, std::move(seconds));
}

BENCHMARK(BM_BareFrames)
    ->ArgNames({"prompt_tokens"})
    ->Arg(16)
    ->Arg(2000)
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_Pool)
    ->ArgNames({"prompt_tokens", "workers"})
    ->Args({16, 1})
    ->Args({2000, 1})
    ->Args({2000, 2})
    ->UseManualTime()
    ->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace thaw::forkpool

int main(int argc, char** argv) {
  thaw::set_log_level("off");
  benchmark::Initialize(&argc, argv);
  benchmark::RunSpecifiedBenchmarks();
}
