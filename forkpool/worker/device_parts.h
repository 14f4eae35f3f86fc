#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/unique_fd.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/model/model.h"
#include "engine/ops/device.h"
#include "forkpool/protocol.h"
#include "forkpool/worker/peer_memory.h"
#include "kvsnap/arena_memory.h"
#include "kvsnap/copy_pipeline.h"

namespace thaw::forkpool::worker {

/// What a worker has before it knows its device's memory. Everything is borrowed and must outlive
/// the parts, but for the descriptors and `inherited`, which are only used while they are made.
struct PartsRequest {
  const InitFrame* init = nullptr;
  /// What the pool kept, by rank; of nothing where it kept none. REQUIRES: one for each rank.
  std::span<const DeviceMemory> inherited;
  const checkpoint::WeightImageView* image = nullptr;
  std::size_t image_bytes = 0;
  int weights_fd = -1;  ///< the file or memfd that `image` maps
  int kv_fd = -1;
  kvsnap::ArenaView* arena = nullptr;  ///< null: there is none
};

/// The half of a worker's engine that depends on the kind of device: weights where it computes, KV
/// memory, model and copies. Made once, in the order of the methods; model and pipeline must be
/// destroyed first. One thread.
class DeviceParts {
 public:
  virtual ~DeviceParts() = default;

  virtual const ops::Device& device() const = 0;
  /// Over this device's weights and KV memory. Called once.
  virtual Result<std::unique_ptr<model::Model>> make_model() = 0;
  /// For KvView::base of `model` and the arena. Called once.
  virtual Result<std::unique_ptr<kvsnap::CopyPipeline>> make_pipeline() = 0;
  /// Whether the KV memory holds what an earlier process of this worker left, in the layout of
  /// `kv`: only then may its published blocks be adopted.
  virtual bool kv_survives(const model::KvView& kv) const = 0;
  /// What the pool shall keep from now on, of every rank; nothing where it has it already, or keeps
  /// files.
  virtual std::vector<DeviceMemory> memory_to_keep(const model::KvView& kv) = 0;
  /// The other processes of this worker.
  virtual std::vector<RankFrame> ranks() const { return {}; }
  /// Another worker's KV memory, readable by the pipeline. Errors: kUnsupported where this device
  /// cannot reach it.
  virtual Result<std::unique_ptr<PeerMemory>> map_peer(const DeviceMemory& memory) const = 0;
  /// What it took until the weights could be used.
  virtual double weights_ms() const = 0;
};

/// Errors name what does not fit: device, KV dtype, memory size, ISA; kUnsupported for a device
/// that this build has no kernels for; kResourceExhausted with what was asked for and what is free.
Result<std::unique_ptr<DeviceParts>> make_device_parts(const PartsRequest& request);

// One for each kind of device; make_device_parts chooses.
Result<std::unique_ptr<DeviceParts>> make_cpu_parts(const PartsRequest& request);
Result<std::unique_ptr<DeviceParts>> make_cuda_parts(const PartsRequest& request, int ordinal);
/// For InitFrame::tp_size ranks, of which this process is the first: it starts the others.
Result<std::unique_ptr<DeviceParts>> make_cuda_group_parts(const PartsRequest& request);

/// The whole work of a process that is not the first rank of its worker, `init` its first frame and
/// `socket` where that came from: until the first rank ends. Does not return an error: it tells the
/// first rank and ends the process.
Result<void> run_follower(UniqueFd socket, const InitFrame& init, DeviceMemory inherited,
                          int weights_fd);
Result<void> run_cuda_follower(UniqueFd socket, const InitFrame& init, DeviceMemory inherited,
                               int weights_fd);

/// "bf16", "f16" or "f32".
Result<ops::KvDType> parse_kv_dtype(const std::string& name);

/// Maps all of an inherited descriptor; `what` names it in errors.
Result<Mapping> map_inherited(int fd, MapAccess access, const std::string& what);

}  // namespace thaw::forkpool::worker
