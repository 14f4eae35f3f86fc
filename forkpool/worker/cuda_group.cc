#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <future>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/base/device_name.h"
#include "engine/base/log.h"
#include "engine/cuda/check.h"
#include "engine/cuda/device_info.h"
#include "engine/cuda/vmm.h"
#include "engine/model/cuda/cuda_model.h"
#include "forkpool/frame_socket.h"
#include "forkpool/worker/cuda_rank.h"
#include "forkpool/worker/device_parts.h"
#include "forkpool/worker/group_model.h"
#include "forkpool/worker/rank_handshake.h"
#include "forkpool/worker/rank_link.h"
#include "forkpool/worker/rank_watch.h"
#include "forkpool/worker_process.h"
#include "kvsnap/copy_pipeline_cuda.h"
#include "kvsnap/pinned_range.h"

// A worker of several GPUs: a process for each rank, one group. The first one is the pool's; it
// starts the others, and they die with it. Its own death, and that of any other, is the group's:
// the pool sees the first one end and starts a new one.

namespace thaw::forkpool::worker {
namespace {

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
      auto report = receive_report(*follower.link, kHandshakeDeadline);
      if (!report) return report.error();
      num_blocks_ = std::min(num_blocks_, report->num_blocks);
      follower.kv_kept = report->kv_kept;
      kv_kept_ = kv_kept_ && follower.kv_kept;
      exchanges_.push_back(std::move(report->exchange));
    }
    num_blocks_ = std::min<std::uint64_t>(num_blocks_, std::numeric_limits<BlockId>::max());
    kv_kept_ = kv_kept_ && rank_.kv_kept();
    return {};
  }

  const ops::Device& device() const override { return rank_.device(); }

  Result<std::unique_ptr<model::Model>> make_model() override {
    const std::vector<int> exchanges = numbers_of(exchanges_);
    for (Follower& follower : followers_) {
      if (auto sent = send_begin(*follower.link, num_blocks_, exchanges, kHandshakeDeadline); !sent)
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
      auto told = receive_ready(*follower.link, kHandshakeDeadline);
      if (!told) return told.error();
      auto kv = cuda::VmmAllocation::import(rank_.ordinal(), told->kv->get(), told->kv_bytes);
      if (!kv) return make_error(kv.error().code, "KV of a rank: " + kv.error().message);
      follower.memory = std::move(*told);
      blocks_.parts.push_back(kv->data());
      kv_of_followers_.push_back(std::move(*kv));
      links.push_back(follower.link.get());
      sockets.push_back(follower.link->socket());
    }
    watch_ = std::make_unique<RankWatch>(std::move(sockets), [this] { rank_.exchange().stop(); });
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
    for (kvsnap::ChunkLimits* limits : {&options.chunks, &options.from_arena_chunks})
      limits->max_bytes = std::max(limits->max_bytes / block, std::size_t{1}) * block;
    return kvsnap::make_split_copy_pipeline(cuda::StreamView(compute_), blocks_, options);
  }
  bool kv_survives(const model::KvView& kv) const override {
    return kv_kept_ && std::ranges::all_of(request_.inherited, [&](const DeviceMemory& kept) {
             return kept.kv_layout == kv.layout && kept.block_bytes == kv.block_bytes;
           });
  }

  std::vector<DeviceMemory> memory_to_keep(const model::KvView& kv) override {
    std::vector<DeviceMemory> all;
    all.push_back(rank_.memory().value());
    for (Follower& follower : followers_)
      all.push_back(std::exchange(follower.memory, {}));
    for (std::uint32_t rank = 0; rank < all.size(); ++rank) {
      all[rank].rank = rank;
      all[rank].device = cuda::device_uuid(ordinal_of(rank)).value();
      all[rank].image = request_.image->digest();
      all[rank].kv_layout = kv.layout;
      all[rank].block_bytes = kv.block_bytes;
      if (!(rank == 0 ? rank_.kv_kept() : followers_[rank - 1].kv_kept)) continue;
      all[rank].kv_bytes = 0;
      all[rank].kv.reset();
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
    // Itself, whatever lies at its path by now.
    auto process = WorkerProcess::spawn(
        {"/proc/self/exe", theirs.get(), request_.weights_fd, request_.kv_fd, request_.kv_fd});
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

  const PartsRequest request_;
  CudaRank rank_;
  std::vector<Follower> followers_;
  std::vector<UniqueFd> exchanges_;  // by rank, until all are connected
  std::vector<cuda::VmmAllocation> kv_of_followers_;
  kvsnap::SplitBlocks blocks_;
  kvsnap::PinnedRange pinned_;
  std::future<Result<kvsnap::PinnedRange>> pinning_;
  std::uint64_t num_blocks_ = 0;
  bool kv_kept_ = true;  ///< all ranks'
  std::unique_ptr<RankWatch> watch_;  // ends before the links
  cudaStream_t compute_ = nullptr;  ///< the model's
};

}  // namespace

Result<std::unique_ptr<DeviceParts>> make_cuda_group_parts(const PartsRequest& request) try {
  auto parts = std::make_unique<CudaGroupParts>(request);
  if (auto built = parts->build(); !built) return built.error();
  return std::unique_ptr<DeviceParts>(std::move(parts));
} catch (const Exception& failure) {
  return failure.error();
}

}  // namespace thaw::forkpool::worker
