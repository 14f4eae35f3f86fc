#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <future>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/base/device_name.h"
#include "engine/base/log.h"
#include "engine/cuda/check.h"
#include "engine/cuda/device_info.h"
#include "engine/cuda/vmm.h"
#include "engine/model/cuda/cuda_model.h"
#include "engine/model/cuda/device_image.h"
#include "engine/model/cuda/shard_upload.h"
#include "engine/model/tensor_parallel.h"
#include "engine/ops/cuda/device.h"
#include "engine/ops/cuda/exchange.h"
#include "forkpool/frame_socket.h"
#include "forkpool/worker/device_parts.h"
#include "forkpool/worker/group_model.h"
#include "forkpool/worker/rank_link.h"
#include "forkpool/worker_process.h"
#include "kvsnap/copy_pipeline_cuda.h"
#include "kvsnap/pinned_range.h"

// A worker of several GPUs: a process for each rank, one group. The first one is the pool's; it
// starts the others, and they die with it. Its own death, and that of any other, is the group's:
// the pool sees the first one end and starts a new one.

namespace thaw::forkpool::worker {
namespace {

std::vector<int> numbers_of(const std::vector<UniqueFd>& descriptors) {
  std::vector<int> numbers;
  numbers.reserve(descriptors.size());
  for (const UniqueFd& descriptor : descriptors)
    numbers.push_back(descriptor.get());
  return numbers;
}

using Clock = std::chrono::steady_clock;

constexpr std::size_t kMarginBytes = std::size_t{768} << 20;  // left free, as for one GPU
constexpr std::chrono::seconds kBootDeadline{50};
constexpr std::chrono::seconds kPeerTimeout{20};  // of kernels that wait for a rank
// What a former group held is free some tenths of a second after its end.
constexpr std::chrono::seconds kMemoryWait{3};
constexpr std::size_t kReadyWords = 8;

double milliseconds_since(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

/// Weights, KV and model of one rank.
class Rank {
 public:
  /// `kept`: what the pool kept of this rank; only used while it is made.
  Rank(const InitFrame& init, const DeviceMemory& kept, const checkpoint::WeightImageView& image)
      : init_(init),
        kept_(kept),
        image_(image),
        tp_{static_cast<int>(init.tp_rank), static_cast<int>(init.tp_size)} {}

  /// Everything that needs no other rank.
  Result<void> load(int weights_fd) {
    const auto devices = parse_device(init_.device);
    if (!devices) return devices.error();
    if (static_cast<int>(devices->more.size()) + 1 != tp_.size) {
      return make_error(Errc::kInvalidArgument, "device " + init_.device + " for " +
                                                    std::to_string(tp_.size) +
                                                    " ranks; one GPU each is right");
    }
    ordinal_ =
        tp_.rank == 0 ? devices->ordinal : devices->more[static_cast<std::size_t>(tp_.rank) - 1];
    if (init_.kv_dtype != "bf16") {
      return make_error(Errc::kUnsupported,
                        "KV dtype '" + init_.kv_dtype + "' on CUDA; its kernels use bf16");
    }
    auto device = ops::CudaDevice::create(ordinal_);
    if (!device) return device.error();
    device_ = std::move(*device);
    auto uuid = cuda::device_uuid(ordinal_);
    if (!uuid) return uuid.error();
    uuid_ = std::move(*uuid);
    auto config = model::ModelConfig::from_json(image_.document());
    if (!config) return config.error();
    config_ = std::move(*config);
    const auto started = Clock::now();
    if (auto loaded = load_weights(weights_fd); !loaded) return loaded;
    weights_ms_ = milliseconds_since(started);
    ops::cuda::Exchange::Options options;
    options.rank = tp_.rank;
    options.size = tp_.size;
    options.user_bytes = model::cuda_exchange_bytes(config_, model_options());
    options.timeout = kPeerTimeout;
    auto exchange = ops::cuda::Exchange::create(ordinal_, options);
    if (!exchange) return exchange.error();
    exchange_ = std::move(*exchange);
    adopt_kv();
    return {};
  }

  /// KV blocks that this rank has room for; an error where there is none for what was asked.
  Result<std::uint64_t> room() const {
    if (kv_ != nullptr) return kv_->size() / block_bytes();
    const auto free_bytes = cuda::free_device_bytes();
    if (!free_bytes) return free_bytes.error();
    const std::size_t reserved = model::cuda_model_bytes(config_, model_options()) + kMarginBytes;
    const std::size_t room = *free_bytes > reserved ? *free_bytes - reserved : 0;
    const std::size_t wanted =
        static_cast<std::size_t>(init_.kv_bytes) / static_cast<std::size_t>(tp_.size);
    if (room < std::max(wanted, block_bytes())) {
      return make_error(Errc::kResourceExhausted,
                        "GPU " + std::to_string(ordinal_) + ": a KV pool of " +
                            std::to_string(std::max(wanted, block_bytes()) >> 20) + " MiB beside " +
                            std::to_string(reserved >> 20) +
                            " MiB for the model's activations, where " +
                            std::to_string(*free_bytes >> 20) +
                            " MiB are free; lower --kv-bytes, --max-num-seqs or "
                            "--prefill-chunk-tokens");
    }
    return (wanted != 0 ? wanted : room) / block_bytes();
  }

  Result<std::unique_ptr<model::CudaModel>> make_model(std::uint64_t num_blocks,
                                                       std::span<const int> exchanges) {
    if (auto connected = exchange_->connect(exchanges); !connected) return connected.error();
    if (kv_ == nullptr) {
      auto kv = cuda::VmmAllocation::create(ordinal_, num_blocks * block_bytes());
      if (!kv) return make_error(kv.error().code, "KV pool: " + kv.error().message);
      kv_ = std::make_unique<cuda::VmmAllocation>(std::move(*kv));
    }
    return model::make_cuda_model(*device_, image_, weights_->span(),
                                  kv_->span().subspan(0, num_blocks * block_bytes()),
                                  model_options());
  }

  ops::cuda::Exchange& exchange() { return *exchange_; }
  const cuda::VmmAllocation& kv() const { return *kv_; }
  const cuda::VmmAllocation& weights() const { return *weights_; }
  const Hash128& weights_digest() const { return weights_digest_; }
  /// The descriptor of what is imported is the one that came: an import is not exported again.
  Result<SharedFd> kv_fd() const { return shared_fd(*kv_, kv_kept_ ? kept_.kv : nullptr); }
  Result<SharedFd> weights_fd() const {
    return shared_fd(*weights_, weights_imported_ ? kept_.weights : nullptr);
  }
  /// Whether the pool has what the device holds, as it is.
  bool weights_kept() const { return weights_kept_; }
  bool kv_kept() const { return kv_kept_; }
  const model::ModelConfig& config() const { return config_; }
  int ordinal() const { return ordinal_; }
  const ops::CudaDevice& device() const { return *device_; }
  double weights_ms() const { return weights_ms_; }
  std::size_t block_bytes() const {
    return model::kv_block_bytes(model::rank_heads(config_, tp_.size), ops::KvDType::kBF16);
  }

 private:
  Result<void> load_weights(int fd) {
    const auto plan = model::plan_shard(image_, config_, tp_);
    if (!plan) return plan.error();
    if (adopt_weights(plan->total_bytes)) return {};
    if (weights_ == nullptr) {
      const auto started = Clock::now();
      auto made = cuda::VmmAllocation::create(ordinal_, plan->total_bytes);
      while (!made && made.error().code == Errc::kResourceExhausted &&
             Clock::now() - started < kMemoryWait) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        made = cuda::VmmAllocation::create(ordinal_, plan->total_bytes);
      }
      if (!made) return make_error(made.error().code, "weights: " + made.error().message);
      weights_ = std::make_unique<cuda::VmmAllocation>(std::move(*made));
    }
    const auto report = model::upload_shard(fd, *plan, weights_->span());
    if (!report) return make_error(report.error().code, "weights: " + report.error().message);
    const cuda::Stream stream;
    const auto digests = model::device_digests(shard_span(plan->total_bytes), stream);
    if (!digests) return digests.error();
    weights_digest_ = digests->summary;
    logger("worker")->info("rank={} weights uploaded mib={} GB_per_s={:.1f}", tp_.rank,
                           report->bytes >> 20, report->bytes_per_second() * 1e-9);
    return {};
  }

  // What the digest takes: whole units of 16 bytes.
  cuda::DeviceSpan<std::byte> shard_span(std::size_t bytes) const {
    return weights_->span().subspan(0, bytes / 16 * 16);
  }

  static Result<SharedFd> shared_fd(const cuda::VmmAllocation& memory, const SharedFd& inherited) {
    if (inherited != nullptr) return inherited;
    auto exported = memory.export_fd();
    if (!exported) return exported.error();
    return std::make_shared<const UniqueFd>(std::move(*exported));
  }

  // Whether the kept weights are here and what they were. What is damaged keeps its memory.
  bool adopt_weights(std::size_t bytes) {
    if (kept_.weights_bytes < bytes || kept_.device != uuid_ || kept_.image != image_.digest())
      return false;
    const auto started = Clock::now();
    auto imported =
        cuda::VmmAllocation::import(ordinal_, kept_.weights->get(), kept_.weights_bytes);
    if (!imported) {
      logger("worker")->warn("rank={} kept weights cannot be imported: {}", tp_.rank,
                             imported.error().message);
      return false;
    }
    weights_ = std::make_unique<cuda::VmmAllocation>(std::move(*imported));
    weights_imported_ = true;
    const cuda::Stream stream;
    const auto verified =
        model::verify_device_image(shard_span(bytes), kept_.weights_digest, stream);
    if (!verified) {
      logger("worker")->warn("rank={} kept weights are damaged, uploading them again: {}", tp_.rank,
                             verified.error().message);
      return false;
    }
    weights_digest_ = kept_.weights_digest;
    weights_kept_ = true;
    logger("worker")->info("rank={} weights adopted mib={} ms={:.2f}", tp_.rank, bytes >> 20,
                           milliseconds_since(started));
    return true;
  }

  void adopt_kv() {
    if (kept_.kv_bytes < block_bytes() || kept_.device != uuid_) return;
    auto imported = cuda::VmmAllocation::import(ordinal_, kept_.kv->get(), kept_.kv_bytes);
    if (!imported) {
      logger("worker")->warn("rank={} kept KV cannot be imported: {}", tp_.rank,
                             imported.error().message);
      return;
    }
    kv_ = std::make_unique<cuda::VmmAllocation>(std::move(*imported));
    kv_kept_ = true;
    logger("worker")->info("rank={} kv adopted mib={}", tp_.rank, kv_->size() >> 20);
  }

  model::CudaModelOptions model_options() const {
    model::CudaModelOptions options;
    options.max_positions = static_cast<int>(init_.max_model_len);
    options.max_sequences = static_cast<int>(init_.max_num_seqs);
    options.max_rows = static_cast<int>(init_.prefill_chunk_tokens + init_.max_num_seqs);
    options.tp = tp_;
    options.exchange = exchange_.get();
    return options;
  }

  const InitFrame init_;
  const DeviceMemory& kept_;
  const checkpoint::WeightImageView& image_;
  const model::TensorParallel tp_;
  int ordinal_ = 0;
  model::ModelConfig config_;
  std::unique_ptr<ops::CudaDevice> device_;
  std::unique_ptr<cuda::VmmAllocation> weights_;
  std::unique_ptr<ops::cuda::Exchange> exchange_;
  std::unique_ptr<cuda::VmmAllocation> kv_;
  std::string uuid_;
  Hash128 weights_digest_;
  bool weights_kept_ = false;
  bool weights_imported_ = false;  ///< intact or not
  bool kv_kept_ = false;
  double weights_ms_ = 0;
};

/// Ends this process at once when a follower ends: its kernels would wait for what never comes, and
/// the pool waits for nothing but our end.
class Watch {
 public:
  Watch(std::vector<int> sockets, ops::cuda::Exchange& exchange)
      : wake_(::eventfd(0, EFD_CLOEXEC)),
        thread_([this, sockets = std::move(sockets), &exchange] { run(sockets, exchange); }) {}
  ~Watch() {
    const std::uint64_t one = 1;
    if (::write(wake_.get(), &one, sizeof one) < 0)
      logger("worker")->error("event=watch_not_woken");
  }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

 private:
  void run(const std::vector<int>& sockets, ops::cuda::Exchange& exchange) const {
    std::vector<pollfd> polled;
    polled.reserve(sockets.size() + 1);
    for (const int socket : sockets)
      polled.push_back({socket, POLLIN | POLLRDHUP, 0});
    polled.push_back({wake_.get(), POLLIN, 0});
    constexpr int kLookMs = 10000;  // an end wakes us
    while (::poll(polled.data(), polled.size(), kLookMs) <= 0) {
    }
    if (polled.back().revents != 0) return;
    for (std::size_t i = 0; i + 1 < polled.size(); ++i)
      if (polled[i].revents != 0) logger("worker")->error("fatal error=\"rank {} ended\"", i + 1);
    exchange.stop();
    std::_Exit(1);
  }

  UniqueFd wake_;
  std::jthread thread_;
};

class CudaGroupParts final : public DeviceParts {
 public:
  explicit CudaGroupParts(const PartsRequest& request)
      : request_(request), rank_(*request.init, request.inherited.front(), *request.image) {}

  Result<void> build() {
    for (std::uint32_t rank = 1; rank < request_.init->tp_size; ++rank)
      if (auto started = start_follower(rank); !started) return started;
    // Meanwhile: pinning takes every page of the arena.
    if (request_.arena != nullptr)
      pinning_ = std::async(std::launch::async, [this] { return pin_arena(); });
    if (auto loaded = rank_.load(request_.weights_fd); !loaded) return loaded;
    auto blocks = rank_.room();
    if (!blocks) return blocks.error();
    num_blocks_ = *blocks;
    auto own = rank_.exchange().export_fd();
    if (!own) return own.error();
    exchanges_.push_back(std::move(*own));
    for (Follower& follower : followers_) {
      RankMessage report;
      if (auto received = receive(follower, report, RankMessageKind::kReport); !received)
        return received;
      if (report.words.size() != 3 || report.descriptors.size() != 1)
        return make_error(Errc::kProtocol, "a rank's report is of another form");
      num_blocks_ = std::min(num_blocks_, number_of(std::span(report.words).first(2)));
      follower.kv_kept = report.words[2] != 0;
      kv_kept_ = kv_kept_ && follower.kv_kept;
      exchanges_.push_back(std::move(report.descriptors.front()));
    }
    num_blocks_ = std::min<std::uint64_t>(num_blocks_, std::numeric_limits<BlockId>::max());
    kv_kept_ = kv_kept_ && rank_.kv_kept();
    return {};
  }

  const ops::Device& device() const override { return rank_.device(); }

  Result<std::unique_ptr<model::Model>> make_model() override {
    const std::vector<int> exchanges = numbers_of(exchanges_);
    for (Follower& follower : followers_) {
      if (auto sent = follower.link->send(RankMessageKind::kBegin, words_of(num_blocks_), exchanges,
                                          kBootDeadline);
          !sent)
        return sent.error();
    }
    auto made = rank_.make_model(num_blocks_, exchanges);
    if (!made) return made.error();
    compute_ = (*made)->stream().get();
    exchanges_.clear();
    std::vector<RankLink*> links;
    std::vector<int> sockets;
    blocks_.base = rank_.kv().data();
    blocks_.parts = {rank_.kv().data()};
    for (Follower& follower : followers_) {
      RankMessage ready;
      if (auto received = receive(follower, ready, RankMessageKind::kReady); !received)
        return received.error();
      auto told = note_memory(ready);
      if (!told) return told.error();
      auto kv = cuda::VmmAllocation::import(rank_.ordinal(), told->kv->get(), told->kv_bytes);
      if (!kv) return make_error(kv.error().code, "KV of a rank: " + kv.error().message);
      follower.memory = std::move(*told);
      blocks_.parts.push_back(kv->data());
      kv_of_followers_.push_back(std::move(*kv));
      links.push_back(follower.link.get());
      sockets.push_back(follower.link->socket());
    }
    watch_ = std::make_unique<Watch>(std::move(sockets), rank_.exchange());
    logger("worker")->info("group ranks={} blocks={} block_bytes={}", request_.init->tp_size,
                           num_blocks_, rank_.block_bytes());
    model::KvView kv = (*made)->kv();
    kv.block_bytes *= request_.init->tp_size;
    kv.layout = model::cuda_kv_layout(rank_.config());
    blocks_.row_bytes = kv.block_bytes / (2 * static_cast<std::size_t>(rank_.config().num_layers));
    return make_group_model(std::move(*made), std::move(kv), std::move(links));
  }

  // The first rank copies what all of them hold.
  Result<std::unique_ptr<kvsnap::CopyPipeline>> make_pipeline() override {
    if (pinning_.valid()) {
      auto pinned = pinning_.get();
      if (!pinned) return pinned.error();
      pinned_ = std::move(*pinned);
    }
    kvsnap::OverlapOptions options;
    options.num_threads = std::clamp(static_cast<int>(request_.init->num_threads), 1, 12);
    // A chunk ends with a block.
    const std::size_t block = rank_.block_bytes() * request_.init->tp_size;
    options.chunks.max_bytes = std::max(options.chunks.max_bytes / block, std::size_t{1}) * block;
    return kvsnap::make_split_copy_pipeline(cuda::StreamView(compute_), blocks_, options);
  }
  bool kv_survives(const model::KvView& kv) const override {
    return kv_kept_ && std::ranges::all_of(request_.inherited, [&](const DeviceMemory& kept) {
             return kept.kv_layout == kv.layout && kept.block_bytes == kv.block_bytes;
           });
  }

  std::vector<DeviceMemory> memory_to_keep(const model::KvView& kv) override {
    DeviceMemory own;
    own.kv_bytes = rank_.kv_kept() ? 0 : rank_.kv().size();
    own.weights_bytes = rank_.weights_kept() ? 0 : rank_.weights().size();
    own.weights_digest = rank_.weights_digest();
    if (own.kv_bytes > 0) own.kv = rank_.kv_fd().value();
    if (own.weights_bytes > 0) own.weights = rank_.weights_fd().value();
    std::vector<DeviceMemory> all;
    all.push_back(std::move(own));
    for (Follower& follower : followers_) {
      all.push_back(std::exchange(follower.memory, {}));
      if (!follower.kv_kept) continue;
      all.back().kv_bytes = 0;
      all.back().kv.reset();
    }
    for (std::uint32_t rank = 0; rank < all.size(); ++rank) {
      all[rank].rank = rank;
      all[rank].device = cuda::device_uuid(ordinal_of(rank)).value();
      all[rank].image = request_.image->digest();
      all[rank].kv_layout = kv.layout;
      all[rank].block_bytes = kv.block_bytes;
    }
    // The pool has the one or the other already.
    std::erase_if(all, [](const DeviceMemory& memory) {
      return memory.kv_bytes == 0 && memory.weights_bytes == 0;
    });
    return all;
  }

  std::vector<RankFrame> ranks() const override {
    std::vector<RankFrame> frames;
    for (const Follower& follower : followers_) {
      UniqueFd process(::fcntl(follower.process.pidfd(), F_DUPFD_CLOEXEC, 0));
      if (!process) throw Exception(io_error("a rank's process descriptor", errno));
      frames.push_back({static_cast<std::uint32_t>(frames.size()) + 1,
                        std::make_shared<const UniqueFd>(std::move(process))});
    }
    return frames;
  }

  Result<std::unique_ptr<PeerMemory>> map_peer(const DeviceMemory& /*memory*/) const override {
    return make_error(Errc::kUnsupported, "KV in parts is not copied from worker to worker");
  }
  double weights_ms() const override { return rank_.weights_ms(); }

 private:
  struct Follower {
    WorkerProcess process;
    std::unique_ptr<RankLink> link;
    DeviceMemory memory = {};  ///< until the pool has heard of it
    bool kv_kept = false;  ///< it has its KV already
  };

  int ordinal_of(std::uint32_t rank) const {
    const DeviceName devices = parse_device(request_.init->device).value();
    return rank == 0 ? devices.ordinal : devices.more[rank - 1];
  }

  /// What a rank says that it has.
  static Result<DeviceMemory> note_memory(RankMessage& ready) {
    const std::span<const std::int32_t> words = ready.words;
    DeviceMemory memory;
    if (words.size() == kReadyWords) {
      memory.kv_bytes = number_of(words.first(2));
      memory.weights_bytes = number_of(words.subspan(2, 2));
      std::memcpy(memory.weights_digest.bytes.data(), words.data() + 4, 16);
    }
    if (memory.kv_bytes == 0 || ready.descriptors.size() != (memory.weights_bytes > 0 ? 2U : 1U)) {
      return make_error(Errc::kProtocol, "a rank's ready is of another form");
    }
    memory.kv = std::make_shared<const UniqueFd>(std::move(ready.descriptors.front()));
    if (memory.weights_bytes > 0)
      memory.weights = std::make_shared<const UniqueFd>(std::move(ready.descriptors.back()));
    return memory;
  }

  Result<kvsnap::PinnedRange> pin_arena() const try {
    const auto devices = parse_device(request_.init->device);
    if (!devices) return devices.error();
    cuda::check(cudaSetDevice(devices->ordinal), "device of the arena");
    return kvsnap::PinnedRange::pin(request_.arena->memory());
  } catch (const Exception& failure) {
    return failure.error();
  }

  Result<void> start_follower(std::uint32_t rank) {
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0)
      return io_error("socketpair", errno);
    UniqueFd ours(ends[0]);
    const UniqueFd theirs(ends[1]);
    std::array<char, 4096> path{};
    if (::readlink("/proc/self/exe", path.data(), path.size() - 1) < 0)
      return io_error("/proc/self/exe", errno);
    auto process = WorkerProcess::spawn(
        {path.data(), theirs.get(), request_.weights_fd, request_.kv_fd, request_.kv_fd});
    if (!process) return process.error();
    InitFrame init = *request_.init;
    init.tp_rank = rank;
    FrameSender sender;
    sender.push(init);
    sender.push(InheritFrame{request_.inherited[rank]});
    while (sender.unsent_bytes() > 0) {  // some hundred bytes into an empty socket
      if (const int failed = sender.send_some(ours.get()); failed != 0)
        return io_error("cannot write to rank " + std::to_string(rank), failed);
    }
    logger("worker")->info("rank={} pid={} spawned", rank, process->pid());
    followers_.push_back({std::move(*process), std::make_unique<RankLink>(std::move(ours))});
    return {};
  }

  static Result<void> receive(Follower& follower, RankMessage& message, RankMessageKind kind) {
    return follower.link->receive(message, kind, kBootDeadline);
  }

  const PartsRequest request_;
  Rank rank_;
  std::vector<Follower> followers_;
  std::vector<UniqueFd> exchanges_;  // by rank, until all are connected
  std::vector<cuda::VmmAllocation> kv_of_followers_;
  kvsnap::SplitBlocks blocks_;
  kvsnap::PinnedRange pinned_;
  std::future<Result<kvsnap::PinnedRange>> pinning_;
  std::uint64_t num_blocks_ = 0;
  bool kv_kept_ = true;  ///< all ranks'
  std::unique_ptr<Watch> watch_;  // ends before the links
  cudaStream_t compute_ = nullptr;  ///< the model's
};

Result<void> follow_leader(RankLink& leader, const InitFrame& init, DeviceMemory inherited,
                           int weights_fd) {
  auto weights = map_inherited(weights_fd, MapAccess::kReadOnly, "weights");
  if (!weights) return weights.error();
  auto image = checkpoint::WeightImageView::open(weights->bytes());
  if (!image) return image.error();
  Rank rank(init, inherited, *image);
  if (auto loaded = rank.load(weights_fd); !loaded) return loaded;
  const auto blocks = rank.room();
  if (!blocks) return blocks.error();
  RankMessage begin;
  {
    const auto exchange = rank.exchange().export_fd();
    if (!exchange) return exchange.error();
    const int descriptor = exchange->get();
    std::vector<std::int32_t> words = words_of(*blocks);
    words.push_back(rank.kv_kept() ? 1 : 0);
    if (auto sent =
            leader.send(RankMessageKind::kReport, words, std::span(&descriptor, 1), kBootDeadline);
        !sent)
      return sent;
  }
  if (auto received = leader.receive(begin, RankMessageKind::kBegin, kBootDeadline); !received)
    return received;
  if (begin.words.size() != 2) return make_error(Errc::kProtocol, "begin is of another form");
  const std::vector<int> exchanges = numbers_of(begin.descriptors);
  auto model = rank.make_model(number_of(begin.words), exchanges);
  if (!model) return model.error();
  begin.descriptors.clear();
  {
    const std::uint64_t weights_bytes = rank.weights_kept() ? 0 : rank.weights().size();
    std::vector<std::int32_t> words = words_of(rank.kv().size());
    std::ranges::copy(words_of(weights_bytes), std::back_inserter(words));
    words.resize(kReadyWords);
    std::memcpy(words.data() + 4, rank.weights_digest().bytes.data(), 16);
    std::vector<SharedFd> memory;
    const auto kv = rank.kv_fd();
    if (!kv) return kv.error();
    memory.push_back(*kv);
    if (weights_bytes > 0) {
      const auto weights_memory = rank.weights_fd();
      if (!weights_memory) return weights_memory.error();
      memory.push_back(*weights_memory);
    }
    std::vector<int> descriptors;
    descriptors.reserve(memory.size());
    for (const SharedFd& part : memory)
      descriptors.push_back(part->get());
    if (auto sent = leader.send(RankMessageKind::kReady, words, descriptors, kBootDeadline); !sent)
      return sent;
  }
  inherited = {};  // what is used of it is imported; nothing else shall live on
  auto followed = follow(leader, **model);
  if (!followed) rank.exchange().stop();
  return followed;
}

}  // namespace

Result<std::unique_ptr<DeviceParts>> make_cuda_group_parts(const PartsRequest& request) try {
  auto parts = std::make_unique<CudaGroupParts>(request);
  if (auto built = parts->build(); !built) return built.error();
  return std::unique_ptr<DeviceParts>(std::move(parts));
} catch (const Exception& failure) {
  return failure.error();
}

Result<void> run_cuda_follower(UniqueFd socket, const InitFrame& init, DeviceMemory inherited,
                               int weights_fd) {
  // No orphan: whatever this process waits for, it ends with its leader. One that has ended already
  // has closed the link.
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  RankLink leader(std::move(socket));
  const auto run = [&]() -> Result<void> {
    try {
      return follow_leader(leader, init, std::move(inherited), weights_fd);
    } catch (const Exception& failure) {
      return failure.error();
    }
  };
  const Result<void> followed = run();
  if (followed) return {};
  std::vector<std::int32_t> words = {static_cast<std::int32_t>(followed.error().code)};
  for (const char letter : followed.error().message)
    words.push_back(static_cast<unsigned char>(letter));
  const auto told =
      leader.send(RankMessageKind::kFailed, words, {}, std::chrono::milliseconds(1000));
  logger("worker")->error("rank={} fatal told={} error=\"{}\"", init.tp_rank,
                          static_cast<bool>(told), followed.error().to_string());
  std::_Exit(1);  // a lost device may hold up whoever frees what it has
}

}  // namespace thaw::forkpool::worker
