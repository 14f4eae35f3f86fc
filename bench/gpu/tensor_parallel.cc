#include "bench/gpu/tensor_parallel.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <utility>

#include <nlohmann/json.hpp>

#include "bench/gpu/timing.h"
#include "engine/cuda/check.h"
#include "engine/cuda/graph.h"
#include "engine/cuda/vmm.h"
#include "engine/model/cuda/cuda_model.h"
#include "engine/model/cuda/random_image.h"
#include "engine/model/tensor_parallel.h"
#include "engine/ops/cuda/all_gather.h"

namespace thaw::bench {
namespace {

using model::Batch;
using model::SequenceRows;
using model::StepHandle;
using ops::cuda::Exchange;

constexpr int kTrunkTokens = 4001;
constexpr int kMostRows = 16;
constexpr int kBlocksPerBranch = 12;
constexpr int kHidden = 4096;
constexpr int kFfn = 14336;

/// Exchanges of one process that drives all ranks.
std::vector<std::unique_ptr<Exchange>> connected(int ranks, std::size_t user_bytes) {
  std::vector<std::unique_ptr<Exchange>> exchanges;
  std::vector<UniqueFd> memory;
  std::vector<int> descriptors;
  for (int rank = 0; rank < ranks; ++rank) {
    Exchange::Options options;
    options.rank = rank;
    options.size = ranks;
    options.user_bytes = user_bytes;
    exchanges.push_back(Exchange::create(rank, options).value());
    memory.push_back(exchanges.back()->export_fd().value());
    descriptors.push_back(memory.back().get());
  }
  for (const auto& exchange : exchanges)
    exchange->connect(descriptors).value();
  return exchanges;
}

/// Runs a graph of `enqueue`d exchanges on both ranks; microseconds of one of its `count`.
double microseconds_each(
    const std::vector<std::unique_ptr<Exchange>>& exchanges, std::uint32_t count,
    const std::function<void(int rank, std::uint32_t ordinal, cuda::StreamView)>& enqueue) {
  struct Rank {
    std::unique_ptr<ops::CudaDevice> device;
    cuda::Stream stream;
    cuda::Event first{cuda::Event::Timing::kOn};
    cuda::Event last{cuda::Event::Timing::kOn};
    std::vector<cuda::Graph> graph;
  };
  std::vector<Rank> ranks;
  for (int rank = 0; rank < static_cast<int>(exchanges.size()); ++rank) {
    auto device = ops::CudaDevice::create(rank).value();
    ranks.push_back({std::move(device),
                     {},
                     cuda::Event(cuda::Event::Timing::kOn),
                     cuda::Event(cuda::Event::Timing::kOn),
                     {}});
    Rank& made = ranks.back();
    made.graph.push_back(cuda::Graph::capture(made.stream, [&](cuda::StreamView stream) {
      for (std::uint32_t i = 1; i <= count; ++i)
        enqueue(rank, i, stream);
      ops::cuda::end_round(*made.device, exchanges[static_cast<std::size_t>(rank)]->view(), count,
                           stream);
    }));
  }
  std::vector<double> times;
  for (int repeat = 0; repeat < 25; ++repeat) {
    for (int turn = 0; turn < 2; ++turn) {  // the first lines the ranks up
      for (std::size_t rank = 0; rank < ranks.size(); ++rank) {
        const cuda::DeviceScope scope(static_cast<int>(rank));
        if (turn == 1) ranks[rank].first.record(ranks[rank].stream);
        ranks[rank].graph[0].launch(ranks[rank].stream);
        if (turn == 1) ranks[rank].last.record(ranks[rank].stream);
      }
    }
    double slowest = 0;
    for (Rank& rank : ranks) {
      rank.stream.synchronize();
      slowest = std::max<double>(slowest, rank.last.milliseconds_since(rank.first));
    }
    if (repeat >= 5) times.push_back(slowest * 1e3 / count);
  }
  return median(times);
}

std::vector<ExchangeFigure> measure_exchanges() {
  const auto exchanges = connected(2, std::size_t{256} << 20);
  const std::vector<int> hidden = {0, kHidden / 2, kHidden};
  const std::vector<int> ffn = {0, kFfn / 2, kFfn};
  constexpr std::size_t kPlace = std::size_t{120} << 20;  // two matrices in turn
  std::vector<cuda::VmmAllocation> scratch;  // parts, weights, what a norm gives
  for (int rank = 0; rank < 2; ++rank) {
    scratch.push_back(cuda::VmmAllocation::create(rank, kPlace).value());
    const cuda::DeviceScope scope(rank);
    cuda::check(cudaMemset(scratch.back().data(), 0, kPlace));
  }
  const std::array<std::unique_ptr<ops::CudaDevice>, 2> devices = {
      ops::CudaDevice::create(0).value(), ops::CudaDevice::create(1).value()};
  std::vector<ExchangeFigure> figures;
  const auto place = [&](int rank, std::uint32_t ordinal) {
    return exchanges[static_cast<std::size_t>(rank)]->user().data() + ordinal % 2 * kPlace;
  };
  for (const int rows : {1, 4, 8, 16, 64, 4001}) {
    const std::uint32_t count = rows > 1000 ? 8 : 64;
    const auto add = [&](const char* what, std::size_t part, auto enqueue) {
      figures.push_back({what, rows, part, microseconds_each(exchanges, count, enqueue)});
    };
    const auto size = static_cast<std::size_t>(rows);
    add("rows of the residual stream", size * kHidden / 2 * 4,
        [&](int rank, std::uint32_t i, cuda::StreamView stream) {
          const auto at = static_cast<std::size_t>(rank);
          ops::cuda::all_gather(
              *devices[at],
              ops::cuda::gather_of_rows(*exchanges[at], i, reinterpret_cast<float*>(place(rank, i)),
                                        rows, kHidden, hidden),
              stream);
        });
    add("tiles of the gated", size * kFfn / 2 * 2,
        [&](int rank, std::uint32_t i, cuda::StreamView stream) {
          const auto at = static_cast<std::size_t>(rank);
          ops::cuda::all_gather(
              *devices[at],
              ops::cuda::gather_of_tiles(
                  *exchanges[at], i,
                  {reinterpret_cast<ops::cuda::Bf16*>(scratch[at].data()), kFfn / 2},
                  {reinterpret_cast<ops::cuda::Bf16*>(place(rank, i)), kFfn}, rows, ffn),
              stream);
        });
    if (!ops::cuda::gather_norm_serves(2, rows, hidden)) continue;
    add("residual stream with its norm", size * kHidden / 2 * 4,
        [&](int rank, std::uint32_t i, cuda::StreamView stream) {
          const auto at = static_cast<std::size_t>(rank);
          ops::cuda::GatherNormParams params;
          params.exchange = exchanges[at]->view();
          params.ordinal = i;
          params.norm.x = reinterpret_cast<const float*>(place(rank, i));
          params.norm.x_stride = kHidden;
          params.norm.weight = reinterpret_cast<const float*>(scratch[at].data());
          params.norm.eps = 1e-5F;
          params.norm.num_rows = rows;
          params.norm.out = {
              reinterpret_cast<ops::cuda::Bf16*>(scratch[at].data() + (std::size_t{1} << 20)),
              kHidden};
          std::ranges::copy(hidden, params.bounds);
          ops::cuda::gather_norm(*devices[at], params, stream);
        });
  }
  return figures;
}

/// One model over `ranks` devices, driven by one thread: launches are short, and overlap.
class Group {
 public:
  explicit Group(int ranks) {
    const model::ModelConfig config = model::llama_8b_config();
    options_.max_positions = 16384;
    options_.max_rows = 4352;
    options_.tp.size = ranks;
    if (ranks > 1) exchanges_ = connected(ranks, model::cuda_exchange_bytes(config, options_));
    const std::size_t blocks = kTrunkTokens / kBlockSize + 1 + kMostRows * kBlocksPerBranch;
    const std::size_t kv_bytes =
        blocks * model::kv_block_bytes(model::rank_heads(config, ranks), ops::KvDType::kBF16);
    for (int rank = 0; rank < ranks; ++rank) {
      ranks_.push_back(std::make_unique<Rank>(rank, config, ranks));
      Rank& made = *ranks_.back();
      made.kv = {kv_bytes, made.stream};
      options_.tp.rank = rank;
      options_.exchange = ranks > 1 ? exchanges_[static_cast<std::size_t>(rank)].get() : nullptr;
      made.model = model::make_cuda_model(*made.device, *made.image.view, made.weights.span(),
                                          made.kv, options_)
                       .value();
    }
    std::mt19937 random(1);
    for (int i = 0; i < kTrunkTokens + 512; ++i)
      tokens_.push_back(static_cast<TokenId>(random() % 128256));
    for (int i = 0; i <= kTrunkTokens / kBlockSize; ++i)
      trunk_.push_back(i);
  }

  StepHandle launch(const Batch& batch) {
    StepHandle handle = 0;
    for (const auto& rank : ranks_) {
      const cuda::DeviceScope scope(rank->number);
      handle = rank->model->launch(batch).value();
    }
    return handle;
  }
  void collect(StepHandle handle) {
    for (const auto& rank : ranks_) {
      const cuda::DeviceScope scope(rank->number);
      rank->model->collect(handle).value();
    }
  }

  /// The prompt in one step; milliseconds.
  double prefill(int count) {
    const std::vector<int> last = {count - 1};
    Batch batch{{{std::span(tokens_).first(static_cast<std::size_t>(count)), 0, trunk_, last}}};
    batch.sequences[0].draw = model::DeviceDraw{};
    std::vector<double> times;
    for (int i = 0; i < 6; ++i) {
      const double ms = milliseconds([&] { collect(launch(batch)); });
      if (i > 0) times.push_back(ms);
    }
    return median(times);
  }

  /// Decode of `rows` branches behind `trunk` tokens, two steps in flight; milliseconds a step.
  double decode(int rows, int trunk) {
    constexpr int kSteps = 40;
    std::vector<std::vector<BlockId>> tables;
    for (int i = 0; i < rows; ++i) {
      tables.emplace_back(trunk_.begin(), trunk_.begin() + trunk / kBlockSize);
      for (int block = 0; block < kBlocksPerBranch; ++block)
        tables.back().push_back(static_cast<BlockId>(trunk_.size()) + i * kBlocksPerBranch + block);
    }
    const std::vector<int> only = {0};
    StepHandle drawn = 0;
    const auto next = [&](int position) {
      Batch batch;
      for (int i = 0; i < rows; ++i) {
        SequenceRows row{std::span(tokens_).subspan(static_cast<std::size_t>(i), 1), position,
                         tables[static_cast<std::size_t>(i)], only};
        row.draw = model::DeviceDraw{};
        if (position > trunk) row.first_token = model::DrawnToken{drawn, i};
        batch.sequences.push_back(row);
      }
      return drawn = launch(batch);
    };
    std::vector<double> times;
    for (int repeat = 0; repeat < 4; ++repeat) {
      collect(next(trunk));
      times.push_back(milliseconds([&] {
                        StepHandle flying = next(trunk + 1);
                        for (int i = 1; i < kSteps; ++i) {
                          const StepHandle following = next(trunk + 1 + i);
                          collect(flying);
                          flying = following;
                        }
                        collect(flying);
                      }) /
                      kSteps);
    }
    return median(times);
  }

  /// Of `work`, the milliseconds in exchanges, on rank 0, with an event after every operation.
  double exchange_ms(const std::function<void()>& work) {
    model::CudaModel& model = *ranks_[0]->model;
    std::vector<model::StepPart> parts;
    std::vector<cuda::Event> events;
    for (const auto& rank : ranks_)  // graphs on no rank
      rank->model->set_probe([](model::StepPart) {});
    model.set_probe([&](model::StepPart part) {
      parts.push_back(part);
      events.emplace_back(cuda::Event::Timing::kOn);
      events.back().record(model.stream());
    });
    work();
    for (const auto& rank : ranks_)
      rank->model->set_probe({});
    double sum = 0;
    for (std::size_t i = 1; i < parts.size(); ++i)
      if (parts[i] == model::StepPart::kExchange)
        sum += static_cast<double>(events[i].milliseconds_since(events[i - 1]));
    return sum;
  }
  void one_prefill(int count) {
    Batch batch{{{std::span(tokens_).first(static_cast<std::size_t>(count)), 0, trunk_, {}}}};
    collect(launch(batch));
  }

 private:
  struct Rank {
    Rank(int rank, const model::ModelConfig& config, int size)
        : number(rank), device(ops::CudaDevice::create(rank).value()) {
      image = model::make_random_image(config, 1, 0.02F, rank, stream).value();
      if (size == 1) {
        weights = std::move(image.weights);
        return;
      }
      const model::ShardPlan plan = model::plan_shard(*image.view, config, {rank, size}).value();
      weights = cuda::VmmAllocation::create(rank, plan.total_bytes).value();
      for (const model::ShardCopy& copy : plan.copies)
        cuda::check(cudaMemcpyAsync(weights.data() + copy.to, image.weights.data() + copy.from,
                                    copy.bytes, cudaMemcpyDeviceToDevice, stream.view().get()));
      stream.synchronize();
      image.weights = cuda::VmmAllocation::create(rank, 1).value();  // the whole goes
    }
    int number;
    std::unique_ptr<ops::CudaDevice> device;
    cuda::Stream stream;
    model::RandomImage image{{}, nullptr, cuda::VmmAllocation::create(number, 1).value()};
    cuda::VmmAllocation weights = cuda::VmmAllocation::create(number, 1).value();
    cuda::DeviceBuffer<std::byte> kv;
    std::unique_ptr<model::CudaModel> model;
  };

  model::CudaModelOptions options_;
  std::vector<std::unique_ptr<Exchange>> exchanges_;
  std::vector<std::unique_ptr<Rank>> ranks_;
  std::vector<TokenId> tokens_;
  std::vector<BlockId> trunk_;
};

}  // namespace

TensorParallelFigures measure_tensor_parallel() {
  TensorParallelFigures figures;
  figures.exchanges = measure_exchanges();
  for (const int ranks : {1, 2}) {
    Group group(ranks);
    for (const int tokens : {512, kTrunkTokens}) {
      const double ms = group.prefill(tokens);
      const double exchange = group.exchange_ms([&] { group.one_prefill(tokens); });
      figures.steps.push_back({ranks, "prefill", tokens, 0, ms, exchange});
    }
    for (const int rows : {1, 4, 8, 16})
      for (const int trunk : {0, kTrunkTokens / kBlockSize * kBlockSize})
        figures.steps.push_back({ranks, "decode", rows, trunk, group.decode(rows, trunk), 0});
  }
  return figures;
}

std::string to_json(const TensorParallelFigures& figures) {
  nlohmann::ordered_json exchanges = nlohmann::ordered_json::array();
  for (const ExchangeFigure& figure : figures.exchanges)
    exchanges.push_back({{"what", figure.what},
                         {"rows", figure.rows},
                         {"part_bytes", figure.part_bytes},
                         {"us", figure.us},
                         {"GB_per_s", static_cast<double>(figure.part_bytes) / figure.us * 1e-3}});
  nlohmann::ordered_json steps = nlohmann::ordered_json::array();
  for (const StepFigure& figure : figures.steps)
    steps.push_back({{"ranks", figure.ranks},
                     {"what", figure.what},
                     {"rows", figure.rows},
                     {"trunk", figure.trunk},
                     {"ms", figure.ms},
                     {"exchange_ms", figure.exchange_ms}});
  return nlohmann::ordered_json{{"exchanges", exchanges}, {"steps", steps}}.dump(1);
}

}  // namespace thaw::bench
