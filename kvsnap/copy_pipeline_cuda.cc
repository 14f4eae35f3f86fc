#include "kvsnap/copy_pipeline_cuda.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/cuda/buffer.h"
#include "engine/cuda/check.h"
#include "kvsnap/device_checksum.h"
#include "kvsnap/peer_copy.h"

namespace thaw::kvsnap {
namespace {

constexpr std::size_t kStreams = 2;  // one starts its next copy while the other's runs
// Ahead of the engine: a millisecond of copies.
constexpr std::size_t kSlots = 16;

// Between two copies from a peer the engine is idle for 3.6 microseconds, and a kernel reaches 94 %
// of its rate on a long one: where the runs are shorter than this, the kernel is faster.
constexpr std::size_t kShortRunBytes = std::size_t{16} << 20;

constexpr std::size_t kWakeBytes = std::size_t{64} << 10;

bool is_scattered(std::span<const CopyPiece> copies) {
  std::size_t bytes = 0;
  for (const CopyPiece& copy : copies)
    bytes += copy.size_bytes;
  return bytes < kShortRunBytes * copies.size();
}

/// Whether CUDA knows the memory at both ends of the piece: the device's, a peer's, pinned pages.
bool is_known(const void* at, std::size_t size_bytes) {
  const auto* const bytes = static_cast<const std::byte*>(at);
  return std::ranges::all_of(std::array{bytes, bytes + size_bytes - 1}, [](const std::byte* end) {
    cudaPointerAttributes attributes{};
    cuda::check(cudaPointerGetAttributes(&attributes, end), "address of a copy");
    return attributes.type != cudaMemoryTypeUnregistered;
  });
}

/// Copies in one call: one by one the engine rests for 3 microseconds between them. That call ends
/// the process where an address is none (driver 580), so that the callers ask is_known() first.
class CopyBatch {
 public:
  void enqueue(std::span<const CopyPiece> copies, cuda::StreamView stream) {
    destinations_.clear();
    sources_.clear();
    sizes_.clear();
    for (const CopyPiece& copy : copies) {
      destinations_.push_back(copy.destination);
      sources_.push_back(copy.source);
      sizes_.push_back(copy.size_bytes);
    }
    cudaMemcpyAttributes in_order{};
    in_order.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
    std::size_t from_first = 0;
    cuda::check(cudaMemcpyBatchAsync(destinations_.data(), sources_.data(), sizes_.data(),
                                     copies.size(), &in_order, &from_first, 1, stream.get()),
                "copies of KV blocks");
  }

 private:
  std::vector<void*> destinations_;
  std::vector<const void*> sources_;
  std::vector<std::size_t> sizes_;
};

DeviceChecksum::End device_end(CopyDirection direction) {
  return direction == CopyDirection::kToArena ? DeviceChecksum::End::kSource
                                              : DeviceChecksum::End::kDestination;
}

/// Turns what the calls below throw into a Result.
template <typename F>
auto caught(F&& body) -> Result<decltype(body())> try {
  if constexpr (std::is_void_v<decltype(body())>) {
    body();
    return {};
  } else {
    return body();
  }
} catch (const Exception& failure) {
  return failure.error();
}

/// Reached from the beginning where the device has nothing to compute: an event on a stream that
/// rests would hold up the first copy.
class CudaFence final : public CopyEngine::Fence {
 public:
  explicit CudaFence(cuda::StreamView compute) {
    if (!compute.done()) event_.emplace().record(compute);
  }
  const std::optional<cuda::Event>& event() const { return event_; }

 private:
  std::optional<cuda::Event> event_;
};

constexpr OverlapOptions kDefaults;
static_assert(kDefaults.from_arena_chunks.max_bytes / DeviceChecksum::kSliceBytes +
                      kDefaults.from_arena_chunks.max_copies <=
                  DeviceChecksum::kMostSlices,
              "the device checks every chunk of a restore, whatever its blocks' size");

class CudaCopyEngine final : public CopyEngine {
 public:
  CudaCopyEngine(cuda::StreamView compute, SplitBlocks split)
      : compute_(compute), split_(std::move(split)), device_(streams_[0].device()) {}

  std::size_t num_slots() const override { return kSlots; }

  Result<std::unique_ptr<Fence>> fence() override {
    return caught(
        [&]() -> std::unique_ptr<Fence> { return std::make_unique<CudaFence>(compute_); });
  }

  Result<void> attach_thread() override {
    return caught([&] { cuda::check(cudaSetDevice(device_), "device of the copies"); });
  }

  Result<void> wait_for(const Fence& fence) override {
    return caught([&] {
      const std::optional<cuda::Event>& reached = static_cast<const CudaFence&>(fence).event();
      if (!reached) return;
      for (const cuda::Stream& stream : streams_)
        reached->wait(stream);
      reached->wait(sent_checks_);
    });
  }

  // Two GPUs' link: after 20 ms without copies the first 256 MB take longer by a tenth, after 300
  // ms by a fourth, however busy both are otherwise. 64 KiB wake it within 0.1 ms; 512 bytes do
  // not.
  Result<void> wake(const std::byte* memory) override {
    return caught([&] {
      cuda::check(cudaMemcpyAsync(woken_to_.data(), memory, kWakeBytes, cudaMemcpyDefault,
                                  streams_.back().view().get()),
                  "copy that wakes the way to a peer");
      woken_.record(streams_.back());
    });
  }
  Result<bool> awake() override {
    return caught([&] { return woken_.done(); });
  }

  Result<void> start(std::size_t slot, CopyDirection direction,
                     std::span<const CopyPiece> copies) override {
    return caught([&] {
      const cuda::StreamView stream = streams_[slot % kStreams];
      if (direction == CopyDirection::kFromPeer && !split_.parts.empty()) {
        throw Exception(make_error(Errc::kInternal, "a copy from a peer into blocks in parts"));
      }
      if (direction == CopyDirection::kFromPeer && is_scattered(copies) &&
          PeerCopy::can_copy(copies)) {
        PeerCopy::enqueue(copies, stream);
        events_[slot].record(stream);
        return;
      }
      if (!split_.parts.empty()) {
        for (const CopyPiece& copy : copies)
          copy_parts(copy, direction, stream);
      } else {
        copy_whole(copies, direction, stream);
      }
      const bool is_checked = can_check(direction, copies);
      if (is_checked && direction == CopyDirection::kFromArena)
        checksum_.enqueue(copies, DeviceChecksum::End::kDestination, results_[slot], stream);
      events_[slot].record(stream);
      // After the copies: what has no address was refused there.
      if (is_checked && direction == CopyDirection::kToArena) {
        checksum_.enqueue(copies, DeviceChecksum::End::kSource, results_[slot], sent_checks_);
        sent_check_events_[slot].record(sent_checks_);
      }
    });
  }

  bool can_check(CopyDirection direction, std::span<const CopyPiece> copies) const override {
    // Blocks in parts lie in another order than that of the arena.
    return direction != CopyDirection::kFromPeer && split_.parts.empty() &&
           DeviceChecksum::can_check(copies, device_end(direction));
  }
  std::uint32_t checksum(std::size_t slot, std::span<const CopyPiece> copies) override {
    return DeviceChecksum::checksum(copies, results_[slot]);
  }

  Result<bool> finished(std::size_t slot) override {
    return caught([&] { return events_[slot].done() && sent_check_events_[slot].done(); });
  }

 private:
  void copy_whole(std::span<const CopyPiece> copies, CopyDirection direction,
                  cuda::StreamView stream) {
    const bool known = copies.size() > 1 && std::ranges::all_of(copies, [](const CopyPiece& copy) {
                         return is_known(copy.source, copy.size_bytes) &&
                                is_known(copy.destination, copy.size_bytes);
                       });
    if (known) {
      batch_.enqueue(copies, stream);
      return;
    }
    // A peer's addresses tell whose memory it is.
    const auto kind = direction == CopyDirection::kToArena     ? cudaMemcpyDeviceToHost
                      : direction == CopyDirection::kFromArena ? cudaMemcpyHostToDevice
                                                               : cudaMemcpyDefault;
    for (const CopyPiece& copy : copies)
      cuda::check(
          cudaMemcpyAsync(copy.destination, copy.source, copy.size_bytes, kind, stream.get()),
          "copy of KV blocks");
  }

  /// Whole rows of blocks, by as many strided copies as there are parts.
  void copy_parts(const CopyPiece& copy, CopyDirection direction, cuda::StreamView stream) {
    const bool to_arena = direction == CopyDirection::kToArena;
    const std::size_t width = split_.row_bytes / split_.parts.size();
    const auto offset = static_cast<std::size_t>(
        (to_arena ? copy.source : static_cast<const std::byte*>(copy.destination)) - split_.base);
    const std::size_t first = offset / split_.row_bytes;
    const std::size_t rows = copy.size_bytes / split_.row_bytes;
    if (offset % split_.row_bytes != 0 || copy.size_bytes % split_.row_bytes != 0)
      throw Exception(make_error(Errc::kInternal, "a copy of KV blocks cuts a row"));
    for (std::size_t i = 0; i < split_.parts.size(); ++i) {
      std::byte* const part = split_.parts[i] + first * width;
      // The kind is left to the addresses: a part may be another device's memory.
      cuda::check(to_arena
                      ? cudaMemcpy2DAsync(copy.destination + i * width, split_.row_bytes, part,
                                          width, width, rows, cudaMemcpyDefault, stream.get())
                      : cudaMemcpy2DAsync(part, width, copy.source + i * width, split_.row_bytes,
                                          width, rows, cudaMemcpyDefault, stream.get()),
                  "copy of a part of KV blocks");
    }
  }

  cuda::StreamView compute_;
  const SplitBlocks split_;
  std::array<cuda::Stream, kStreams> streams_;
  std::array<cuda::Event, kSlots> events_;
  cuda::DeviceBuffer<std::byte> woken_to_{kWakeBytes, streams_.back()};
  cuda::Event woken_;
  CopyBatch batch_;
  // What is sent is checked beside its copy, so that no copy waits until a step has multiprocessors
  // to spare.
  cuda::Stream sent_checks_;
  std::array<cuda::Event, kSlots> sent_check_events_;
  DeviceChecksum checksum_{streams_[0]};
  cuda::PinnedBuffer<DeviceChecksum::Results> results_{kSlots};
  int device_;
};

}  // namespace

Result<std::unique_ptr<CopyPipeline>> make_cuda_copy_pipeline(cuda::StreamView compute,
                                                              const OverlapOptions& options) {
  return caught([&]() -> std::unique_ptr<CopyPipeline> {
    return std::make_unique<OverlappedPipeline>(
        std::make_unique<CudaCopyEngine>(compute, SplitBlocks{}), options);
  });
}

Result<std::unique_ptr<CopyPipeline>> make_split_copy_pipeline(cuda::StreamView compute,
                                                               const SplitBlocks& blocks,
                                                               const OverlapOptions& options) {
  if (blocks.parts.empty() || blocks.row_bytes == 0 ||
      blocks.row_bytes % blocks.parts.size() != 0) {
    return make_error(Errc::kInvalidArgument,
                      "KV blocks in " + std::to_string(blocks.parts.size()) + " parts of rows of " +
                          std::to_string(blocks.row_bytes) +
                          " bytes; parts that divide a row are right");
  }
  return caught([&]() -> std::unique_ptr<CopyPipeline> {
    return std::make_unique<OverlappedPipeline>(std::make_unique<CudaCopyEngine>(compute, blocks),
                                                options);
  });
}

}  // namespace thaw::kvsnap
