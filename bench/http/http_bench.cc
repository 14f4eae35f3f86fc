// What HTTP and the coalescer cost by themselves: the server runs in this process over a backend
// that answers from submit(), and clients on loopback sockets ask for one chat token each, not
// streamed. Latencies are counters in microseconds; items per second are requests per second.

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <benchmark/benchmark.h>

#include "engine/base/log.h"
#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using SteadyTime = std::chrono::steady_clock;

/// Answers at once and keeps nothing, unlike the tests' backend.
class InstantBackend final : public Backend {
 public:
  void set_event_sink(std::function<void(GenerateEvent)> sink) override { sink_ = std::move(sink); }
  void submit(ForkPlan plan) override {
    for (const PlannedRequest& planned : plan.requests) {
      const GenerateRequest& request = planned.request;
      sink_(AdmittedEvent{request.id, 0});
      for (std::uint32_t i = 0; i < request.sampling.max_tokens; ++i) {
        TokenEvent token;
        token.request = request.id;
        token.index = i;
        token.token = 'x';
        sink_(std::move(token));
      }
      sink_(FinishedEvent{request.id, 0, FinishReason::kLength, std::nullopt});
      sink_(CompletedEvent{request.id, Usage{static_cast<std::uint32_t>(request.prompt.size()), 0,
                                             request.sampling.max_tokens}});
    }
  }
  void cancel(RequestId) override {}
  void end_choice(RequestId, std::uint32_t) override {}
  void keep(KeepTrunk, TrunkDone done) override { done(KeptTrunk{}); }
  void release(const PinId&) override {}
  void save(SaveTrunk, TrunkDone done) override { done(KeptTrunk{}); }
  void load(LoadTrunk, TrunkDone done) override { done(KeptTrunk{}); }
  PoolStatus status() const override {
    PoolStatus status;
    status.ready = true;
    return status;
  }

 private:
  std::function<void(GenerateEvent)> sink_;
};

std::string request_bytes(std::size_t prompt_bytes, int max_tokens, bool stream) {
  return post_bytes("/v1/chat/completions", R"({"model":"fake-model","max_tokens":)" +
                                                std::to_string(max_tokens) + R"(,"stream":)" +
                                                (stream ? "true" : "false") +
                                                R"(,"messages":[{"role":"user","content":")" +
                                                std::string(prompt_bytes, 'p') + "\"}]}");
}

/// Asks `count` times on one connection; appends the latencies in microseconds.
void ask(std::uint16_t port, const std::string& bytes, int count, std::vector<double>& latencies) {
  RawClient client(port);
  for (int i = 0; i < count; ++i) {
    const auto start = SteadyTime::now();
    client.send(bytes);
    const auto reply = client.read_reply();
    if (!reply || reply->status != 200) throw std::runtime_error("a request failed");
    const std::chrono::duration<double, std::micro> took = SteadyTime::now() - start;
    latencies.push_back(took.count());
  }
}

void run(benchmark::State& state, std::size_t prompt_bytes, int max_tokens, bool stream) {
  set_log_level("warn");
  const int connections = static_cast<int>(state.range(0));
  constexpr int kRequestsPerConnection = 1000;
  InstantBackend backend;
  ServerOptions options;
  options.max_model_len = 1U << 20;
  RunningServer server(&backend, options);
  const std::string bytes = request_bytes(prompt_bytes, max_tokens, stream);
  std::vector<double> all;
  for (auto _ : state) {
    std::vector<std::vector<double>> latencies(connections);
    std::vector<std::thread> clients;
    for (int i = 0; i < connections; ++i)
      clients.emplace_back(
          [&, i] { ask(server.port(), bytes, kRequestsPerConnection, latencies[i]); });
    for (std::thread& client : clients)
      client.join();
    for (const auto& part : latencies)
      all.insert(all.end(), part.begin(), part.end());
  }
  std::sort(all.begin(), all.end());
  state.SetItemsProcessed(static_cast<std::int64_t>(all.size()));
  state.counters["p50_us"] = all[all.size() / 2];
  state.counters["p99_us"] = all[all.size() * 99 / 100];
}

void BM_ChatOneToken(benchmark::State& state) {
  run(state, /*prompt_bytes=*/100, /*max_tokens=*/1, /*stream=*/false);
}
BENCHMARK(BM_ChatOneToken)->Arg(1)->Arg(8)->UseRealTime()->Unit(benchmark::kMillisecond);

void BM_ChatOneTokenLongPrompt(benchmark::State& state) {
  run(state, /*prompt_bytes=*/8000, /*max_tokens=*/1, /*stream=*/false);
}
BENCHMARK(BM_ChatOneTokenLongPrompt)->Arg(1)->Arg(8)->UseRealTime()->Unit(benchmark::kMillisecond);

void BM_ChatStream64Tokens(benchmark::State& state) {
  run(state, /*prompt_bytes=*/100, /*max_tokens=*/64, /*stream=*/true);
}
BENCHMARK(BM_ChatStream64Tokens)->Arg(1)->Arg(8)->UseRealTime()->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace thaw::coalescer

BENCHMARK_MAIN();
