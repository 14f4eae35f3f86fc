#include "kvsnap/overlapped_pipeline.h"

#include <atomic>
#include <cstring>
#include <random>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/crc32c.h"

namespace thaw::kvsnap {
namespace {

using std::chrono::milliseconds;

// A copy engine that copies when it is asked whether it has finished, the second time: what a
// checksum may cover is there only from then on.
class LazyEngine final : public CopyEngine {
 public:
  struct Control {
    std::atomic<int> fences{0};
    std::atomic<int> waits{0};
    std::atomic<int> starts{0};
    std::atomic<std::size_t> most_in_flight{0};
    std::atomic<bool> held{false};  ///< nothing finishes
    std::atomic<int> held_after{1 << 30};  ///< arrivals: nothing more finishes
    int fail_at_start = -1;  ///< the start with that number
    int fail_at_finish = -1;  ///< when that many have been started
    bool fail_fence = false;
    bool fail_attach = false;
    bool checks = false;  ///< the engine computes checksums itself
    std::atomic<int> checked{0};
    std::atomic<int> wakes{0};
    std::atomic<bool> asleep{false};  ///< what wake() began is not done
    bool fail_wake = false;
    int damage_at = -1;  ///< the arrival with that number brings a flipped bit
    int arrivals = 0;
  };
  struct NumberedFence final : Fence {
    explicit NumberedFence(int which) : number(which) {}
    int number;
  };

  explicit LazyEngine(Control& control) : control_(&control) {}
  std::size_t num_slots() const override { return kSlots; }
  Result<std::unique_ptr<Fence>> fence() override {
    if (control_->fail_fence) return make_error(Errc::kCuda, "no fence");
    return std::unique_ptr<Fence>(std::make_unique<NumberedFence>(++control_->fences));
  }
  Result<void> attach_thread() override {
    if (control_->fail_attach) return make_error(Errc::kCuda, "no device");
    return {};
  }
  Result<void> wait_for(const Fence& fence) override {
    EXPECT_EQ(static_cast<const NumberedFence&>(fence).number, ++control_->waits);
    return {};
  }
  Result<void> wake(const std::byte* memory) override {
    EXPECT_NE(memory, nullptr);
    ++control_->wakes;
    if (control_->fail_wake) return make_error(Errc::kCuda, "no way");
    return {};
  }
  Result<bool> awake() override { return !control_->asleep; }
  Result<void> start(std::size_t slot, CopyDirection direction,
                     std::span<const CopyPiece> copies) override {
    EXPECT_GT(control_->waits, 0) << "copies before their fence";
    if (control_->starts++ == control_->fail_at_start) return make_error(Errc::kCuda, "no start");
    EXPECT_FALSE(slots_[slot].in_flight);
    slots_[slot] = {{copies.begin(), copies.end()}, direction, true, false};
    std::size_t in_flight = 0;
    for (const Slot& other : slots_)
      in_flight += other.in_flight ? 1 : 0;
    control_->most_in_flight = std::max(control_->most_in_flight.load(), in_flight);
    return {};
  }
  Result<bool> finished(std::size_t slot) override {
    if (control_->starts == control_->fail_at_finish) return make_error(Errc::kCuda, "illegal");
    if (control_->held || control_->arrivals >= control_->held_after) return false;
    Slot& asked = slots_[slot];
    EXPECT_TRUE(asked.in_flight);
    if (!std::exchange(asked.seen, true)) return false;
    for (const CopyPiece& copy : asked.copies)
      std::memcpy(copy.destination, copy.source, copy.size_bytes);
    if (control_->arrivals++ == control_->damage_at) *asked.copies[0].destination ^= std::byte{4};
    asked.in_flight = false;
    return true;
  }
  bool can_check(CopyDirection /*direction*/,
                 std::span<const CopyPiece> /*copies*/) const override {
    return control_->checks;
  }
  std::uint32_t checksum(std::size_t slot, std::span<const CopyPiece> copies) override {
    EXPECT_FALSE(slots_[slot].in_flight);
    ++control_->checked;
    const bool to_arena = slots_[slot].direction == CopyDirection::kToArena;
    std::uint32_t crc = 0;
    for (const CopyPiece& copy : copies)
      crc = crc32c({to_arena ? copy.source : copy.destination, copy.size_bytes}, crc);
    return crc;
  }

 private:
  static constexpr std::size_t kSlots = 3;
  struct Slot {
    std::vector<CopyPiece> copies;
    CopyDirection direction = CopyDirection::kToArena;
    bool in_flight = false;
    bool seen = false;
  };
  Control* control_;
  std::array<Slot, kSlots> slots_;
};

class OverlappedPipelineTest : public testing::Test {
 protected:
  static constexpr std::size_t kBlockBytes = 3000;
  static constexpr std::size_t kBlocks = 200;
  static constexpr ChunkLimits kChunks{.max_bytes = 10000, .max_copies = 4};

  OverlappedPipelineTest() : kv_(kBlocks * kBlockBytes), arena_(kv_.size(), std::byte{0xEE}) {
    std::mt19937_64 random(5);
    for (std::byte& byte : kv_)
      byte = static_cast<std::byte>(random());
  }

  OverlappedPipeline make(milliseconds deadline = milliseconds(20000)) {
    return OverlappedPipeline(
        std::make_unique<LazyEngine>(control_),
        {.num_threads = 2, .chunks = kChunks, .from_arena_chunks = kChunks, .deadline = deadline});
  }
  // Two extents; the blocks of the second lie the other way round.
  std::vector<ExtentCopy> to_arena() {
    std::vector<ExtentCopy> extents(2);
    for (std::size_t i = 0; i < kBlocks; ++i) {
      const std::size_t block = i < kBlocks / 2 ? i : kBlocks * 3 / 2 - 1 - i;
      extents[i < kBlocks / 2 ? 0 : 1].pieces.push_back(
          {kv_.data() + block * kBlockBytes, arena_.data() + i * kBlockBytes, kBlockBytes});
    }
    return extents;
  }
  std::vector<ExtentCopy> from_arena(std::vector<std::byte>& to) {
    std::vector<ExtentCopy> extents(1);
    for (std::size_t i = 0; i < kBlocks; ++i) {
      extents[0].pieces.push_back({arena_.data() + i * kBlockBytes,
                                   i == 7 ? nullptr : to.data() + i * kBlockBytes, kBlockBytes});
    }
    return extents;
  }
  std::uint32_t arena_crc(std::size_t first, std::size_t count) {
    return crc32c(std::span(arena_).subspan(first * kBlockBytes, count * kBlockBytes));
  }

  LazyEngine::Control control_;
  std::vector<std::byte> kv_;
  std::vector<std::byte> arena_;
};

TEST_F(OverlappedPipelineTest, ThereAndBackWithChecksums) {
  auto pipeline = make();
  const CopyHandle there = pipeline.launch(CopyDirection::kToArena, to_arena()).value();
  const auto checksums = pipeline.collect(there).value();
  ASSERT_EQ(checksums.size(), 2U);
  EXPECT_EQ(checksums[0], arena_crc(0, kBlocks / 2));
  EXPECT_EQ(checksums[1], arena_crc(kBlocks / 2, kBlocks / 2));
  EXPECT_TRUE(std::equal(arena_.begin(), arena_.begin() + kBlocks / 2 * kBlockBytes, kv_.begin()));
  EXPECT_EQ(std::memcmp(arena_.data() + kBlocks / 2 * kBlockBytes,
                        kv_.data() + (kBlocks - 1) * kBlockBytes, kBlockBytes),
            0);
  EXPECT_EQ(control_.most_in_flight, 3U);  // as many as there are slots, and no more

  std::vector<std::byte> back(kv_.size(), std::byte{0xAA});
  const CopyHandle home = pipeline.launch(CopyDirection::kFromArena, from_arena(back)).value();
  EXPECT_EQ(pipeline.collect(home).value(), std::vector<std::uint32_t>{arena_crc(0, kBlocks)});
  for (std::size_t i = 0; i < kBlocks; ++i) {
    const bool same = std::memcmp(back.data() + i * kBlockBytes, arena_.data() + i * kBlockBytes,
                                  kBlockBytes) == 0;
    EXPECT_EQ(same, i != 7) << i;
  }
  EXPECT_EQ(back[7 * kBlockBytes], std::byte{0xAA});
}

TEST_F(OverlappedPipelineTest, AnEngineChecksWhatLiesInKvMemory) {
  control_.checks = true;
  control_.damage_at = 50;  // on the way, in the second extent
  auto pipeline = make();
  const auto there = pipeline.collect(pipeline.launch(CopyDirection::kToArena, to_arena()).value());
  ASSERT_TRUE(there);
  EXPECT_EQ((*there)[0], arena_crc(0, kBlocks / 2));
  EXPECT_NE((*there)[1], arena_crc(kBlocks / 2, kBlocks / 2));  // so that nobody restores it
  EXPECT_GT(control_.checked, 0);
  control_.checked = 0;
  std::vector<std::byte> back(kv_.size());
  const auto restored = [&](std::size_t unwanted) {
    std::vector<ExtentCopy> extents = from_arena(back);
    extents[0].pieces[7].destination = back.data() + 7 * kBlockBytes;
    if (unwanted < kBlocks) extents[0].pieces[unwanted].destination = nullptr;
    return pipeline.collect(pipeline.launch(CopyDirection::kFromArena, extents).value()).value()[0];
  };
  EXPECT_EQ(restored(kBlocks), arena_crc(0, kBlocks));
  EXPECT_GT(control_.checked, 0);
  // What it is not shown it cannot check: that copy is left to the threads.
  const int checked = control_.checked;
  EXPECT_EQ(restored(9), arena_crc(0, kBlocks));
  EXPECT_EQ(control_.checked, checked);
  control_.damage_at = control_.arrivals + 5;
  EXPECT_NE(restored(kBlocks), arena_crc(0, kBlocks));
}

TEST_F(OverlappedPipelineTest, LaunchAndDoneDoNotWait) {
  control_.held = true;
  auto pipeline = make();
  const CopyHandle first = pipeline.launch(CopyDirection::kToArena, to_arena()).value();
  const CopyHandle second = pipeline.launch(CopyDirection::kToArena, to_arena()).value();
  EXPECT_FALSE(pipeline.done(first));
  EXPECT_FALSE(pipeline.done(second));
  control_.held = false;
  EXPECT_TRUE(pipeline.collect(second));  // any order
  EXPECT_TRUE(pipeline.done(first));
  EXPECT_TRUE(pipeline.collect(first));
  EXPECT_EQ(pipeline.collect(first).error().code, Errc::kInternal);
  EXPECT_TRUE(pipeline.done(99));  // collect() says what is wrong with it
}

TEST_F(OverlappedPipelineTest, NothingToCopyIsDone) {
  auto pipeline = make();
  const CopyHandle handle = pipeline.launch(CopyDirection::kToArena, {ExtentCopy{}}).value();
  EXPECT_EQ(pipeline.collect(handle).value(), std::vector<std::uint32_t>{0});
}

TEST_F(OverlappedPipelineTest, AnErrorOfTheDeviceFailsThisCopyAndEveryLaterOne) {
  for (const bool at_start : {true, false}) {
    LazyEngine::Control control;
    (at_start ? control.fail_at_start : control.fail_at_finish) = 5;
    OverlappedPipeline pipeline(
        std::make_unique<LazyEngine>(control),
        {.num_threads = 1, .chunks = kChunks, .from_arena_chunks = kChunks});
    const auto handle = pipeline.launch(CopyDirection::kToArena, to_arena());
    EXPECT_EQ(pipeline.collect(handle.value()).error().code, Errc::kCuda);
    const auto next = pipeline.launch(CopyDirection::kToArena, to_arena());
    EXPECT_EQ((next ? pipeline.collect(*next).error() : next.error()).code, Errc::kCuda);
    EXPECT_LE(control.starts, 6);  // the engine was left alone
  }
}

TEST_F(OverlappedPipelineTest, AnEngineThatHangsMissesItsDeadline) {
  control_.held = true;
  auto pipeline = make(milliseconds(20));
  const CopyHandle stuck = pipeline.launch(CopyDirection::kFromArena, to_arena()).value();
  const CopyHandle behind = pipeline.launch(CopyDirection::kFromArena, to_arena()).value();
  const auto result = pipeline.collect(stuck);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, Errc::kDeadlineExceeded);
  EXPECT_THAT(result.error().message, testing::HasSubstr("parts of a copy are done after 20 ms"));
  EXPECT_EQ(pipeline.collect(behind).error().code, Errc::kDeadlineExceeded);
  EXPECT_FALSE(pipeline.launch(CopyDirection::kToArena, to_arena()));
}

TEST_F(OverlappedPipelineTest, WithoutAFenceOrADeviceNothingStarts) {
  control_.fail_fence = true;
  EXPECT_EQ(make().launch(CopyDirection::kToArena, to_arena()).error().code, Errc::kCuda);
  control_.fail_fence = false;
  control_.fail_attach = true;
  auto pipeline = make();
  const auto handle = pipeline.launch(CopyDirection::kToArena, to_arena());
  EXPECT_FALSE(handle && pipeline.collect(*handle));
  EXPECT_EQ(control_.starts, 0);
}

TEST_F(OverlappedPipelineTest, DestructionDropsWhatWaits) {
  control_.held = true;
  auto pipeline = std::make_unique<OverlappedPipeline>(
      std::make_unique<LazyEngine>(control_),
      OverlapOptions{.num_threads = 1, .chunks = {}, .deadline = milliseconds(50)});
  for (int i = 0; i < 100; ++i)
    ASSERT_TRUE(pipeline->launch(CopyDirection::kToArena, to_arena()));
  pipeline.reset();  // the test's own time limit is what fails here
  EXPECT_LE(control_.waits, 2);
}

TEST_F(OverlappedPipelineTest, WholeExtentsAreToldWhileTheOthersAreCopied) {
  for (const bool engine_checks : {false, true}) {
    SCOPED_TRACE(engine_checks);
    control_.checks = engine_checks;
    control_.arrivals = 0;
    control_.waits = control_.fences = 0;
    control_.held_after = 35;  // of 30 chunks an extent
    OverlappedPipeline pipeline = make();
    const CopyHandle handle = pipeline.launch(CopyDirection::kToArena, to_arena()).value();
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (pipeline.checked(handle).empty() && std::chrono::steady_clock::now() < end)
      std::this_thread::yield();
    EXPECT_EQ(pipeline.checked(handle), std::vector{arena_crc(0, kBlocks / 2)});
    EXPECT_FALSE(pipeline.done(handle));
    control_.held_after = 1 << 30;
    const auto sums = pipeline.collect(handle);
    ASSERT_TRUE(sums) << sums.error().to_string();
    EXPECT_EQ(*sums, (std::vector{arena_crc(0, kBlocks / 2), arena_crc(kBlocks / 2, kBlocks / 2)}));
    EXPECT_TRUE(pipeline.checked(handle).empty());
  }
}

TEST_F(OverlappedPipelineTest, NobodyChecksWhatComesFromAPeer) {
  control_.checks = true;
  OverlappedPipeline pipeline = make();
  std::vector<std::byte> to(kv_.size());
  std::vector<ExtentCopy> copies(1);
  for (std::size_t i = 0; i < kBlocks; ++i) {  // scattered there, one after another here
    const std::size_t block = i * 7 % kBlocks;
    copies[0].pieces.push_back(
        {kv_.data() + block * kBlockBytes, to.data() + i * kBlockBytes, kBlockBytes});
  }
  const CopyHandle handle = pipeline.launch(CopyDirection::kFromPeer, std::move(copies)).value();
  const auto sums = pipeline.collect(handle);
  ASSERT_TRUE(sums) << sums.error().to_string();
  EXPECT_TRUE(sums->empty());
  EXPECT_EQ(control_.checked, 0);
  for (std::size_t i = 0; i < kBlocks; ++i) {
    ASSERT_EQ(std::memcmp(kv_.data() + i * 7 % kBlocks * kBlockBytes, to.data() + i * kBlockBytes,
                          kBlockBytes),
              0)
        << i;
  }
}

TEST_F(OverlappedPipelineTest, AnExpectedPeerIsWokenAndItsMemoryKeptMeanwhile) {
  std::atomic<int> let_go{0};
  const auto peer = [&] {
    return std::shared_ptr<const std::byte>(kv_.data(), [&](const std::byte*) { ++let_go; });
  };
  const auto becomes = [](const std::atomic<int>& count, int wanted) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (count < wanted && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(milliseconds(1));
    return count == wanted;
  };
  {
    auto pipeline = make();
    pipeline.expect(nullptr);
    control_.asleep = true;
    pipeline.expect(peer());
    EXPECT_TRUE(becomes(control_.wakes, 1));
    pipeline.expect(peer());  // while the first is read: nothing to do for it
    EXPECT_TRUE(becomes(let_go, 1));
    EXPECT_EQ(control_.wakes, 1);
    const auto copy =
        pipeline.collect(pipeline.launch(CopyDirection::kToArena, to_arena()).value());
    EXPECT_TRUE(copy) << "a copy does not wait for it";
    EXPECT_EQ(let_go, 1) << "the first is still read";
    control_.asleep = false;
    EXPECT_TRUE(becomes(let_go, 2));
    control_.asleep = true;
    pipeline.expect(peer());
    EXPECT_TRUE(becomes(control_.wakes, 2));
    control_.asleep = false;
  }
  EXPECT_EQ(let_go, 3) << "destruction waits for the engine";
}

TEST_F(OverlappedPipelineTest, APeerThatCannotBeWokenIsLetGo) {
  control_.fail_wake = true;
  auto pipeline = make();
  std::atomic<bool> let_go{false};
  pipeline.expect({kv_.data(), [&](const std::byte*) { let_go = true; }});
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!let_go && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(milliseconds(1));
  EXPECT_TRUE(let_go);
  EXPECT_EQ(control_.wakes, 1);
  EXPECT_TRUE(pipeline.collect(pipeline.launch(CopyDirection::kToArena, to_arena()).value()));
}

TEST_F(OverlappedPipelineTest, WhatTheEngineAloneSeesToStartsBeforeTheCopyAheadHasEnded) {
  constexpr std::size_t kPart = 5;  // blocks: two chunks, of three slots
  control_.checks = true;
  OverlappedPipeline pipeline = make();
  arena_ = kv_;
  for (const CopyDirection direction : {CopyDirection::kFromArena, CopyDirection::kFromPeer}) {
    const int before = control_.starts;
    control_.held = true;
    std::vector<std::byte> to(kv_.size());
    std::vector<CopyHandle> parts;
    for (std::size_t part = 0; part < 4; ++part) {
      std::vector<ExtentCopy> copies(1);
      const std::size_t at = part * kPart * kBlockBytes;
      copies[0].pieces.push_back({arena_.data() + at, to.data() + at, kPart * kBlockBytes});
      parts.push_back(pipeline.launch(direction, std::move(copies)).value());
    }
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (control_.starts < before + 3 && std::chrono::steady_clock::now() < end)
      std::this_thread::yield();
    EXPECT_EQ(control_.starts, before + 3);  // the third is of the second part
    EXPECT_FALSE(pipeline.done(parts[0]));
    control_.held = false;
    for (std::size_t part = 0; part < parts.size(); ++part) {
      const auto sums = pipeline.collect(parts[part]);
      ASSERT_TRUE(sums) << sums.error().to_string();
      if (direction == CopyDirection::kFromArena) {
        EXPECT_EQ(*sums, std::vector{arena_crc(part * kPart, kPart)});
      }
    }
    EXPECT_EQ(std::memcmp(to.data(), arena_.data(), 4 * kPart * kBlockBytes), 0);
  }
}

// Behind parts that nobody else looks at, one that the threads read, and again such parts.
TEST_F(OverlappedPipelineTest, CopiesOfBothKindsTakeTurns) {
  control_.checks = true;
  OverlappedPipeline pipeline = make();
  std::vector<std::byte> back(kv_.size());
  std::vector<CopyHandle> copies;
  arena_ = kv_;
  std::vector<ExtentCopy> whole(1);
  whole[0].pieces.push_back({arena_.data(), back.data(), kv_.size()});
  for (const bool unwanted : {false, false, true, false}) {
    copies.push_back(
        pipeline.launch(CopyDirection::kFromArena, unwanted ? from_arena(back) : whole).value());
  }
  for (const CopyHandle copy : copies)
    EXPECT_EQ(pipeline.collect(copy).value(), std::vector{arena_crc(0, kBlocks)});
  EXPECT_EQ(back, kv_);
}

}  // namespace
}  // namespace thaw::kvsnap
