#include "kvsnap/copy_pipeline_cuda.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/crc32c.h"
#include "engine/cuda/buffer.h"
#include "engine/cuda/check.h"
#include "engine/cuda/vmm.h"
#include "kvsnap/arena.h"
#include "kvsnap/device_checksum.h"
#include "kvsnap/peer_copy.h"
#include "kvsnap/pinned_range.h"
#include "kvsnap/snapshot_reader.h"
#include "kvsnap/snapshot_writer.h"
#include "tests/cuda/gpu_test.h"

namespace thaw::kvsnap {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t kBlockBytes = 368640;
constexpr std::size_t kBlocks = 101;
constexpr std::size_t kBytes = kBlocks * kBlockBytes;

// KV memory of two workers on one device, an arena, and a snapshot that takes the blocks of the
// first out of order.
class CudaPipelineTest : public cuda::GpuTest {
 protected:
  void SetUp() override {
    cuda::GpuTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    compute_ = std::make_unique<cuda::Stream>();
    arena_ = std::make_unique<Arena>(std::move(Arena::create(2 * kBytes)).value());
    view_ = std::make_unique<ArenaView>(std::move(ArenaView::map(arena_->fd())).value());
    pinned_ = PinnedRange::pin(view_->memory()).value();
    kv_.emplace_back(cuda::VmmAllocation::create(0, kBytes).value());
    kv_.emplace_back(cuda::VmmAllocation::create(0, kBytes).value());
    pipeline_ = make_cuda_copy_pipeline(*compute_, options()).value();
    contents_.resize(kBytes);
    std::mt19937_64 random(3);
    for (std::byte& byte : contents_)
      byte = static_cast<std::byte>(random());
    cuda::check(cudaMemcpy(kv_[0].data(), contents_.data(), kBytes, cudaMemcpyHostToDevice));
    cuda::check(cudaMemset(kv_[1].data(), 0xEE, kBytes));
    cuda::check(cudaDeviceSynchronize());
  }
  static OverlapOptions options() {
    constexpr ChunkLimits kChunks{.max_bytes = 1 << 20, .max_copies = 64};
    return {.num_threads = 2, .chunks = kChunks, .from_arena_chunks = kChunks};
  }

  static std::size_t place(std::size_t block) { return block * 7 % kBlocks; }
  template <typename Byte>
  std::vector<Byte*> blocks(int pool) const {
    std::vector<Byte*> blocks;
    for (std::size_t i = 0; i < kBlocks; ++i)
      blocks.push_back(kv_[pool].data() + (pool == 0 ? place(i) : i) * kBlockBytes);
    return blocks;
  }
  Manifest request() {
    auto lease = arena_->lease_for_writing({}, kBlocks, kBlockBytes).value();
    return {root_, format_.kv_layout, 16, kBlockBytes, std::vector<TokenId>(16 * kBlocks), 0,
            1,     lease.extents};
  }
  Result<Manifest> write() {
    SnapshotWriter writer(*view_, *pipeline_, format_);
    auto pending = writer.start(request(), root_, blocks<const std::byte>(0));
    if (!pending) return pending.error();
    return writer.finish(std::move(*pending));
  }
  Result<void> read(const Manifest& manifest) {
    SnapshotReader reader(*view_, *pipeline_, format_);
    auto pending = reader.start(manifest, root_, blocks<std::byte>(1));
    if (!pending) return pending.error();
    return reader.finish(*pending);
  }
  std::vector<std::byte> device_bytes(int pool) const {
    std::vector<std::byte> bytes(kBytes);
    cuda::check(cudaMemcpy(bytes.data(), kv_[pool].data(), kBytes, cudaMemcpyDeviceToHost));
    return bytes;
  }
  void expect_restored() {
    const auto bytes = device_bytes(1);
    for (std::size_t i = 0; i < kBlocks; ++i) {
      EXPECT_TRUE(std::equal(bytes.begin() + i * kBlockBytes, bytes.begin() + (i + 1) * kBlockBytes,
                             contents_.begin() + place(i) * kBlockBytes))
          << "block " << i;
    }
  }
  // Some tens of milliseconds of work on the compute stream, the last of which fills `memory`.
  void keep_computing(std::byte* memory, std::size_t size, int last) {
    for (int i = 0; i < 400; ++i)
      cuda::check(cudaMemsetAsync(memory, i == 399 ? last : i, size, compute_->view().get()));
  }

  Hash128 root_;
  KvFormat format_{"test", 16, kBlockBytes, 0, 1};
  std::unique_ptr<cuda::Stream> compute_;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<ArenaView> view_;
  PinnedRange pinned_;
  std::vector<cuda::VmmAllocation> kv_;
  std::unique_ptr<CopyPipeline> pipeline_;
  std::vector<std::byte> contents_;
};

TEST_F(CudaPipelineTest, ThereAndIntoAnotherPoolBitForBit) {
  const Manifest manifest = write().value();
  for (const Extent& extent : manifest.extents)
    EXPECT_EQ(extent.crc32c, crc32c(view_->bytes(extent)));
  EXPECT_TRUE(std::equal(contents_.begin(), contents_.begin() + kBlockBytes,
                         view_->bytes(manifest.extents[0]).begin()));
  ASSERT_TRUE(read(manifest));
  expect_restored();
}

TEST_F(CudaPipelineTest, TheDeviceComputesTheChecksumsOfTheHost) {
  const DeviceChecksum device(*compute_);
  const cuda::PinnedBuffer<DeviceChecksum::Results> results(1);
  std::byte* const at = kv_[0].data();
  using End = DeviceChecksum::End;
  std::byte elsewhere{};  // is not looked at
  const auto piece_at = [&](std::size_t first, std::size_t size, End end) {
    return end == End::kSource ? CopyPiece{at + first, &elsewhere, size}
                               : CopyPiece{&elsewhere, at + first, size};
  };
  const auto expect = [&](const std::vector<std::pair<std::size_t, std::size_t>>& ranges) {
    for (const End end : {End::kSource, End::kDestination}) {
      std::vector<CopyPiece> copies;
      std::uint32_t crc = 0;
      for (const auto& [first, size] : ranges) {
        copies.push_back(piece_at(first, size, end));
        crc = crc32c(std::span(contents_).subspan(first, size), crc);
      }
      ASSERT_TRUE(DeviceChecksum::can_check(copies, end));
      device.enqueue(copies, end, results[0], *compute_);
      compute_->synchronize();
      EXPECT_EQ(DeviceChecksum::checksum(copies, results[0]), crc)
          << ranges.size() << " ranges, the first of " << ranges[0].second << " bytes";
    }
  };
  for (const std::size_t size : {16, 32, 4080, 4096, 4112, 65520, 65536, 65552, 1000000, 4194304})
    expect({{48, size}});
  expect({{0, 368640}, {5 * 368640, 368640}, {1024, 16}});
  const auto can = [&](std::size_t first, std::size_t size) {
    const auto can_at = [&](End end) {
      return DeviceChecksum::can_check(std::vector{piece_at(first, size, end)}, end);
    };
    EXPECT_EQ(can_at(End::kSource), can_at(End::kDestination));
    return can_at(End::kSource);
  };
  EXPECT_FALSE(can(8, 1024));
  EXPECT_FALSE(can(0, 1000));
  EXPECT_FALSE(can(0, DeviceChecksum::kSliceBytes * DeviceChecksum::kMostSlices + 16));
  const std::vector<CopyPiece> unwanted = {{at, nullptr, 1024}};
  EXPECT_FALSE(DeviceChecksum::can_check(unwanted, End::kDestination));
}

// From another allocation, as from a peer: scattered blocks by a kernel, long runs by the engine.
TEST_F(CudaPipelineTest, WhatComesFromAPeerArrivesBitForBit) {
  for (const bool scattered : {true, false}) {
    SCOPED_TRACE(scattered ? "scattered" : "one run");
    cuda::check(cudaMemset(kv_[1].data(), 0xEE, kBytes));
    cuda::check(cudaDeviceSynchronize());
    std::vector<ExtentCopy> copies(1);
    for (std::size_t i = 0; i < kBlocks; ++i) {
      copies[0].pieces.push_back({kv_[0].data() + (scattered ? place(i) : i) * kBlockBytes,
                                  kv_[1].data() + i * kBlockBytes, kBlockBytes});
    }
    std::atomic<bool> let_go{false};
    pipeline_->expect({kv_[0].data(), [&](const std::byte*) { let_go = true; }});
    const auto copy = pipeline_->launch(CopyDirection::kFromPeer, std::move(copies)).value();
    const auto sums = pipeline_->collect(copy);
    ASSERT_TRUE(sums) << sums.error().to_string();
    EXPECT_TRUE(sums->empty());
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!let_go && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ASSERT_TRUE(let_go) << "the peer's memory is held";
    if (scattered) {
      expect_restored();
    } else {
      EXPECT_EQ(device_bytes(1), contents_);
    }
  }
}

TEST_F(CudaPipelineTest, TheKernelTakesPiecesOfEverySize) {
  const std::byte* const from = kv_[0].data();
  std::byte* const to = kv_[1].data();
  std::vector<CopyPiece> pieces;
  std::size_t at = 32;
  for (const std::size_t size : {16, 65536, 65520, 65552, 131072, 1000000, 48, 4194304}) {
    pieces.push_back({from + at, to + 2 * at, size});
    at += size + 1024;
  }
  ASSERT_TRUE(PeerCopy::can_copy(pieces));
  PeerCopy::enqueue(pieces, *compute_);
  compute_->synchronize();
  const auto bytes = device_bytes(1);
  for (const CopyPiece& piece : pieces) {
    EXPECT_TRUE(std::equal(bytes.begin() + (piece.destination - to),
                           bytes.begin() + (piece.destination - to) + piece.size_bytes,
                           contents_.begin() + (piece.source - from)))
        << piece.size_bytes << " bytes";
  }
  std::vector<std::byte> outside = bytes;
  for (const CopyPiece& piece : pieces)
    std::fill_n(outside.begin() + (piece.destination - to), piece.size_bytes, std::byte{0xEE});
  EXPECT_TRUE(std::ranges::all_of(outside, [](std::byte byte) { return byte == std::byte{0xEE}; }));
  const auto can = [&](const CopyPiece& piece) { return PeerCopy::can_copy(std::span(&piece, 1)); };
  EXPECT_FALSE(can({from + 8, to, 64}));
  EXPECT_FALSE(can({from, to + 8, 64}));
  EXPECT_FALSE(can({from, to, 24}));
  EXPECT_FALSE(can({from, nullptr, 64}));
  EXPECT_FALSE(
      PeerCopy::can_copy(std::vector<CopyPiece>(PeerCopy::kMostPieces + 1, {from, to, 16})));
}

TEST_F(CudaPipelineTest, AFlippedBitIsCaughtAndTheNextRestoreIsRight) {
  const Manifest manifest = write().value();
  std::byte& victim = view_->bytes(manifest.extents[0])[kBytes / 2];
  victim ^= std::byte{4};
  EXPECT_EQ(read(manifest).error().code, Errc::kDataLoss);
  victim ^= std::byte{4};
  ASSERT_TRUE(read(manifest));
  expect_restored();
}

TEST_F(CudaPipelineTest, ASnapshotSeesWhatWasLaunchedBeforeItAndStallsNothing) {
  keep_computing(kv_[0].data(), kBytes, 0x5A);
  cuda::Event computed;
  computed.record(*compute_);
  SnapshotWriter writer(*view_, *pipeline_, format_);
  auto pending = writer.start(request(), root_, blocks<const std::byte>(0)).value();
  EXPECT_FALSE(computed.done()) << "the launch waited for the device, or the device is too fast";
  const Manifest manifest = writer.finish(std::move(pending)).value();
  EXPECT_TRUE(computed.done());
  for (const Extent& extent : manifest.extents)
    EXPECT_THAT(view_->bytes(extent).subspan(extent.size_bytes / 2, 64),
                testing::Each(std::byte{0x5A}));
  EXPECT_EQ(manifest.extents[0].crc32c, crc32c(view_->bytes(manifest.extents[0])));
}

TEST_F(CudaPipelineTest, ARestoreComesAfterStepsThatStillWriteItsBlocks) {
  const Manifest manifest = write().value();
  keep_computing(kv_[1].data(), kBytes, 0x5A);
  ASSERT_TRUE(read(manifest));
  expect_restored();
}

TEST_F(CudaPipelineTest, ComputeGoesOnWhileCopiesWaitForIt) {
  // Work that is launched after the snapshot, on other memory, is not held up by it.
  const cuda::DeviceBuffer<char> other(1 << 20, *compute_);
  keep_computing(kv_[0].data(), kBytes, 1);
  SnapshotWriter writer(*view_, *pipeline_, format_);
  auto pending = writer.start(request(), root_, blocks<const std::byte>(0)).value();
  cuda::check(cudaMemsetAsync(other.data(), 3, other.size(), compute_->view().get()));
  compute_->synchronize();
  ASSERT_TRUE(writer.finish(std::move(pending)));
}

TEST_F(CudaPipelineTest, AHundredRoundTripsLeakNothing) {
  const Manifest manifest = write().value();
  ASSERT_TRUE(read(manifest));
  const std::size_t before = cuda::free_device_bytes().value();
  SnapshotWriter writer(*view_, *pipeline_, format_);
  for (int round = 0; round < 100; ++round) {
    auto pending = writer.start(manifest, root_, blocks<const std::byte>(0)).value();
    ASSERT_EQ(writer.finish(std::move(pending)).value().extents[0].crc32c,
              manifest.extents[0].crc32c);
    ASSERT_TRUE(read(manifest));
  }
  expect_restored();
  EXPECT_EQ(cuda::free_device_bytes().value(), before);
}

TEST_F(CudaPipelineTest, EveryKindOfPageCanBePinned) {
  struct Kind {
    const char* name;
    int flags;
    int advice;
  };
  constexpr std::size_t kSize = std::size_t{32} << 20;
  for (const Kind& kind :
       {Kind{"reserved huge pages", MAP_HUGETLB, 0}, Kind{"huge where possible", 0, MADV_HUGEPAGE},
        Kind{"4 KiB pages", 0, MADV_NOHUGEPAGE}}) {
    SCOPED_TRACE(kind.name);
    void* data = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS | kind.flags, -1, 0);
    if (data == MAP_FAILED && kind.flags != 0) continue;  // none are reserved here
    ASSERT_NE(data, MAP_FAILED);
    if (kind.advice != 0) (void)::madvise(data, kSize, kind.advice);
    const std::span<std::byte> memory(static_cast<std::byte*>(data), kSize);
    {
      const PinnedRange pinned = PinnedRange::pin(memory).value();
      std::vector<ExtentCopy> extents(1);
      extents[0].pieces.push_back({kv_[0].data(), memory.data(), kSize});
      const auto copy = pipeline_->launch(CopyDirection::kToArena, extents).value();
      EXPECT_EQ(pipeline_->collect(copy).value()[0], crc32c(std::span(contents_).first(kSize)));
    }
    ::munmap(data, kSize);
  }
}

// Last: where the driver finds out by a fault, no later call of this process succeeds.
using ZCudaPipelineFailureTest = CudaPipelineTest;

TEST_F(ZCudaPipelineFailureTest, AnAddressThatIsNoneFailsClosed) {
  const std::byte* gone = nullptr;
  {
    const auto freed = cuda::VmmAllocation::create(0, kBytes).value();
    gone = freed.data();
  }
  // Behind one that is right, in the same call.
  std::vector<ExtentCopy> extents(1);
  extents[0].pieces.push_back({kv_[0].data(), view_->memory().data(), kBlockBytes});
  extents[0].pieces.push_back({gone, view_->memory().data() + kBlockBytes, kBlockBytes});
  const auto copy = pipeline_->launch(CopyDirection::kToArena, extents);
  EXPECT_EQ(pipeline_->collect(copy.value()).error().code, Errc::kCuda);
  EXPECT_FALSE(write());  // the pipeline is done for; the process would be replaced
}

}  // namespace
}  // namespace thaw::kvsnap
