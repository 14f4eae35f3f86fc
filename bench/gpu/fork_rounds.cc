#include "bench/gpu/fork_rounds.h"

#include <chrono>
#include <memory>
#include <random>
#include <variant>

#include <nlohmann/json.hpp>

#include "bench/gpu/timing.h"
#include "engine/model/cuda/cuda_model.h"
#include "engine/model/cuda/random_image.h"
#include "engine/scheduler/scheduler.h"

namespace thaw::bench {
namespace {

using SteadyTime = std::chrono::steady_clock;

constexpr std::size_t kTrunk = 4001;
constexpr std::size_t kQuestion = 20;
constexpr std::uint32_t kGenerated = 64;
constexpr std::size_t kKvBytes = std::size_t{24} << 30;

struct Round {
  double wall_ms = 0;
  double first_token_ms = 0;
  std::size_t prefilled = 0;
};

/// A worker's engine without its process.
class Engine {
 public:
  Engine()
      : kv_(kKvBytes, stream_),
        model_(model::make_cuda_model(*device_, *image_.view, image_.weights.span(), kv_, options())
                   .value()),
        pool_(model_->kv().num_blocks),
        index_(pool_),
        scheduler_(scheduler_options(), *model_, index_, pool_, clock_,
                   [this](const GenerateEvent& event) { note(event); }) {}

  /// The next trunk is one that nobody has seen.
  void new_trunk() {
    trunk_.resize(kTrunk);
    for (TokenId& token : trunk_)
      token = random_token();
  }

  Round run(std::size_t branches) {
    std::vector<GenerateRequest> requests(branches);
    for (GenerateRequest& request : requests)
      request = next_request();
    const std::uint64_t before = scheduler_.stats().tokens_prefilled;
    first_token_ms_ = 0;
    started_ = SteadyTime::now();
    for (GenerateRequest& request : requests)
      scheduler_.add(std::move(request)).value();
    const double added = milliseconds_since(started_);
    admit_us_.push_back(added * 1e3 / static_cast<double>(branches));
    while (scheduler_.has_work())
      scheduler_.step().value();
    return {milliseconds_since(started_), first_token_ms_,
            static_cast<std::size_t>(scheduler_.stats().tokens_prefilled - before)};
  }

  double admit_us() const { return median(admit_us_); }
  void forget_admissions() { admit_us_.clear(); }

 private:
  static model::CudaModelOptions options() {
    model::CudaModelOptions options;
    options.max_positions = 16384;
    options.max_rows = 8192;
    return options;
  }
  static scheduler::SchedulerOptions scheduler_options() {
    scheduler::SchedulerOptions options;
    options.prefill_chunk_tokens = 8192 - 64;
    options.max_model_len = 16384;
    return options;
  }

  TokenId random_token() { return static_cast<TokenId>(random_() % 128000); }

  GenerateRequest next_request() {
    GenerateRequest request;
    request.id = ++last_id_;
    request.prompt = trunk_;
    for (std::size_t i = 0; i < kQuestion; ++i)
      request.prompt.push_back(random_token());
    request.sampling.temperature = 0.0F;
    request.sampling.max_tokens = kGenerated;
    request.sampling.ignore_eos = true;
    return request;
  }

  void note(const GenerateEvent& event) {
    if (const auto* failed = std::get_if<FailedEvent>(&event)) throw Exception(failed->error);
    if (first_token_ms_ == 0 && std::holds_alternative<TokenEvent>(event))
      first_token_ms_ = milliseconds_since(started_);
  }

  std::unique_ptr<ops::CudaDevice> device_ = ops::CudaDevice::create(0).value();
  cuda::Stream stream_;
  model::RandomImage image_ =
      model::make_random_image(model::llama_8b_config(), 1, 0.02F, 0, stream_).value();
  cuda::DeviceBuffer<std::byte> kv_;
  std::unique_ptr<model::CudaModel> model_;
  kv::BlockPool pool_;
  kv::RadixIndex index_;
  SteadyClock clock_;
  scheduler::Scheduler scheduler_;
  std::mt19937 random_{1};
  std::vector<TokenId> trunk_;
  RequestId last_id_ = 0;
  SteadyTime::time_point started_;
  double first_token_ms_ = 0;
  std::vector<double> admit_us_;
};

}  // namespace

ForkRoundFigures measure_fork_rounds(const std::vector<std::size_t>& branches, int repeats) {
  Engine engine;
  ForkRoundFigures figures{kTrunk, kQuestion, kGenerated, {}, 0};
  engine.new_trunk();
  engine.run(2);  // graphs are captured
  engine.forget_admissions();
  for (const std::size_t count : branches) {
    ForkRound round;
    round.branches = count;
    std::vector<double> cold;
    std::vector<double> warm;
    std::vector<double> cold_first;
    std::vector<double> warm_first;
    for (int i = 0; i < repeats; ++i) {
      engine.new_trunk();
      const Round first = engine.run(count);
      const Round second = engine.run(count);
      cold.push_back(first.wall_ms);
      warm.push_back(second.wall_ms);
      cold_first.push_back(first.first_token_ms);
      warm_first.push_back(second.first_token_ms);
      round.cold_prefilled = first.prefilled;
      round.warm_prefilled = second.prefilled;
    }
    round.cold_ms = median(cold);
    round.warm_ms = median(warm);
    round.cold_first_token_ms = median(cold_first);
    round.warm_first_token_ms = median(warm_first);
    figures.rounds.push_back(round);
  }
  figures.admit_us = engine.admit_us();
  return figures;
}

std::string to_json(const ForkRoundFigures& figures) {
  nlohmann::ordered_json rounds = nlohmann::ordered_json::array();
  for (const ForkRound& round : figures.rounds) {
    rounds.push_back({{"branches", round.branches},
                      {"cold_ms", round.cold_ms},
                      {"warm_ms", round.warm_ms},
                      {"cold_first_token_ms", round.cold_first_token_ms},
                      {"warm_first_token_ms", round.warm_first_token_ms},
                      {"cold_prefilled", round.cold_prefilled},
                      {"warm_prefilled", round.warm_prefilled}});
  }
  const nlohmann::ordered_json all = {{"trunk_tokens", figures.trunk_tokens},
                                      {"question_tokens", figures.question_tokens},
                                      {"generated_tokens", figures.generated_tokens},
                                      {"admit_us", figures.admit_us},
                                      {"rounds", rounds}};
  return all.dump(1);
}

}  // namespace thaw::bench
