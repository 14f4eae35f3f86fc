#include <numeric>
#include <string>
#include <type_traits>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/error.h"
#include "engine/cuda/buffer.h"
#include "engine/cuda/check.h"
#include "engine/cuda/device_info.h"
#include "engine/cuda/graph.h"
#include "engine/cuda/stream.h"
#include "tests/cuda/gpu_test.h"

namespace thaw::cuda {
namespace {

template <typename T>
constexpr bool kMoveOnly =
    std::is_nothrow_move_constructible_v<T>&& std::is_nothrow_move_assignable_v<T> &&
    !std::is_copy_constructible_v<T>;
static_assert(kMoveOnly<Stream> && kMoveOnly<Event> && kMoveOnly<Graph>);
static_assert(kMoveOnly<DeviceBuffer<int>> && kMoveOnly<PinnedBuffer<int>>);
static_assert(std::is_convertible_v<DeviceSpan<int>, DeviceSpan<const int>>);
static_assert(!std::is_convertible_v<DeviceSpan<const int>, DeviceSpan<int>>);

Errc code_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Exception& failure) {
    return failure.error().code;
  }
  return Errc::kInternal;
}

// These need no GPU: the messages and the answer of a machine without one.
TEST(CudaCheckTest, NamesTheCallAndTheError) {
  check(cudaSuccess);
  try {
    check(cudaErrorInvalidValue, "copy");
    FAIL() << "did not throw";
  } catch (const Exception& failure) {
    EXPECT_EQ(failure.error().code, Errc::kCuda);
    EXPECT_THAT(failure.error().message, testing::HasSubstr("copy: cudaErrorInvalidValue"));
    EXPECT_THAT(failure.error().file, testing::HasSubstr("cuda_test.cc"));
  }
  EXPECT_EQ(code_of([] { check(cudaErrorMemoryAllocation, "x"); }), Errc::kResourceExhausted);
}

TEST(CudaDeviceInfoTest, ADeviceThatIsNotThereIsUnavailable) {
  const auto info = device_info(device_count());
  ASSERT_FALSE(info);
  EXPECT_EQ(info.error().code, Errc::kUnavailable);
}

using CudaBaseTest = GpuTest;

TEST_F(CudaBaseTest, DescribesTheDevice) {
  const DeviceInfo info = device_info(0).value();
  EXPECT_GT(info.multiprocessors, 0);
  EXPECT_GT(info.total_bytes, std::size_t{1} << 30);
  EXPECT_GT(info.shared_bytes_per_block, 48u << 10);
  EXPECT_LE(free_device_bytes().value(), info.total_bytes);
  const Stream stream;
  const CopyRates rates = measure_copy_rates(std::size_t{64} << 20, 3, stream).value();
  EXPECT_GT(rates.to_device, 0);
  EXPECT_GT(rates.to_host, 0);
  EXPECT_EQ(measure_copy_rates(0, 3, stream).error().code, Errc::kInvalidArgument);
}

TEST_F(CudaBaseTest, BuffersCarryBytesThereAndBack) {
  const Stream stream;
  std::vector<int> from(1000);
  std::iota(from.begin(), from.end(), 7);
  std::vector<int> to(1000);
  DeviceBuffer<int> buffer(1000, stream);
  copy_to_device<int>(from, buffer, stream);
  DeviceBuffer<int> moved = std::move(buffer);
  EXPECT_EQ(buffer.data(), nullptr);  // NOLINT(bugprone-use-after-move): that is the test
  copy_to_host<int>(moved, to, stream);
  stream.synchronize();
  EXPECT_EQ(to, from);
  EXPECT_EQ(code_of([&] { copy_to_host<int>(moved.span().subspan(0, 10), to, stream); }),
            Errc::kInvalidArgument);
  moved = DeviceBuffer<int>();
  EXPECT_EQ(DeviceBuffer<int>(0, stream).size(), 0u);
}

TEST_F(CudaBaseTest, PinnedMemoryIsOrdinaryMemoryToTheHost) {
  const Stream stream;
  const PinnedBuffer<int> from(256);
  std::iota(from.span().begin(), from.span().end(), 3);
  const PinnedBuffer<int> to(256);
  const DeviceBuffer<int> buffer(256, stream);
  copy_to_device<int>(from.span(), buffer, stream);
  copy_to_host<int>(buffer, to.span(), stream);
  Event done;
  done.record(stream);
  done.synchronize();
  EXPECT_TRUE(done.done());
  EXPECT_TRUE(std::equal(from.span().begin(), from.span().end(), to.span().begin()));
  const PinnedBuffer<int> combined(16, PinnedKind::kWriteCombined);
  EXPECT_NE(combined.data(), nullptr);
}

TEST_F(CudaBaseTest, MoreMemoryThanThereIsIsAnErrorNotACrash) {
  const Stream stream;
  EXPECT_EQ(code_of([&] { const DeviceBuffer<char> huge(std::size_t{1} << 42, stream); }),
            Errc::kResourceExhausted);
  const DeviceBuffer<char> fits(16, stream);  // and the next call is not haunted by it
  stream.synchronize();
}

TEST_F(CudaBaseTest, EventsOrderStreams) {
  const Stream first;
  const Stream second;
  const DeviceBuffer<char> buffer(1 << 20, first);
  Event written;
  check(cudaMemsetAsync(buffer.data(), 5, buffer.size(), first.view().get()));
  written.record(first);
  written.wait(second);
  std::vector<char> seen(1 << 20);
  copy_to_host<char>(buffer, seen, second);
  second.synchronize();
  EXPECT_THAT(seen, testing::Each(5));
  Event start(Event::Timing::kOn);
  Event stop(Event::Timing::kOn);
  start.record(first);
  check(cudaMemsetAsync(buffer.data(), 6, buffer.size(), first.view().get()));
  stop.record(first);
  stop.synchronize();
  EXPECT_GT(stop.milliseconds_since(start), 0);
}

TEST_F(CudaBaseTest, AGraphRunsEachTimeItIsLaunched) {
  const Stream stream;
  const DeviceBuffer<int> from(4, stream);
  const DeviceBuffer<int> to(4, stream);
  std::vector<int> values = {1, 2, 3, 4};
  stream.synchronize();
  const Graph graph = Graph::capture(stream, [&](StreamView s) {
    check(cudaMemcpyAsync(to.data(), from.data(), 16, cudaMemcpyDeviceToDevice, s.get()));
  });
  for (int round = 0; round < 2; ++round) {
    for (int& value : values)
      value += 10;
    copy_to_device<int>(values, from, stream);
    graph.launch(stream);
    std::vector<int> seen(4);
    copy_to_host<int>(to, seen, stream);
    stream.synchronize();
    EXPECT_EQ(seen, values);
  }
}

TEST_F(CudaBaseTest, AFailedCaptureLeavesTheStreamUsable) {
  const Stream stream;
  EXPECT_THROW((void)Graph::capture(stream, [](StreamView) { throw std::runtime_error("no"); }),
               std::runtime_error);
  const DeviceBuffer<int> buffer(4, stream);
  stream.synchronize();
}

}  // namespace
}  // namespace thaw::cuda
