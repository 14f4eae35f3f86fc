// Exchanges between ranks that are processes: what arrives is what was computed, bit for bit, under
// skew and at every size; and a rank that dies holds nobody up.

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>

#include <gtest/gtest.h>

#include "engine/cuda/graph.h"
#include "engine/ops/cuda/all_gather.h"
#include "tests/cuda/rank_test.h"
#include "tests/ops/cuda/cuda_ops_util.cuh"

namespace thaw::ops::cuda {
namespace {

using namespace std::chrono_literals;
using thaw::cuda::Graph;
using thaw::cuda::StreamView;

constexpr std::size_t kUserBytes = std::size_t{48} << 20;

/// Even shares, the rest to the last ones.
std::vector<int> bounds_of(int total, int unit, int size) {
  std::vector<int> bounds;
  for (int rank = 0; rank <= size; ++rank)
    bounds.push_back(rank == size ? total : total / unit * rank / size * unit);
  return bounds;
}

class AllGatherTest : public thaw::cuda::RankTest {
 protected:
  void join(int size, std::chrono::milliseconds timeout = 30s) {
    start(size);
    cuda_device = CudaDevice::create(device()).value();
    stream = std::make_unique<Stream>();
    exchange = Exchange::create(device(), {rank(), size, kUserBytes, timeout}).value();
    const std::vector<UniqueFd> all = share(exchange->export_fd().value());
    std::vector<int> descriptors;
    for (const UniqueFd& fd : all)
      descriptors.push_back(fd.get());
    ASSERT_TRUE(exchange->connect(descriptors));
    meet();  // whoever stores now stores into memory that is cleared and mapped
  }
  /// The same on every rank.
  std::vector<float> values(std::size_t count, unsigned seed) const {
    std::vector<float> all(count);
    std::uint32_t state = seed * 2654435761U + 12345U;
    for (float& value : all) {
      state = state * 1664525U + 1013904223U;
      value = static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31F;
    }
    return all;
  }
  float* user_floats(std::size_t at) const {
    return reinterpret_cast<float*>(exchange->user().data() + at);
  }
  void copy_in(void* to, const void* from, std::size_t bytes) const {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream->view().get()));
    stream->synchronize();
  }
  void finish() {
    stream->synchronize();
    ASSERT_EQ(exchange->stopped(), 0u) << exchange->stop_error().message;
  }

  void gathers_rows(int num_rows, int cols, std::span<const int> bounds, unsigned seed) {
    const std::vector<float> whole = values(static_cast<std::size_t>(num_rows) * cols, seed);
    std::vector<float> own(whole.size());
    std::memset(own.data(), 0xff, own.size() * sizeof(float));
    for (int row = 0; row < num_rows; ++row)
      for (int col = bounds[rank()]; col < bounds[rank() + 1]; ++col)
        own[static_cast<std::size_t>(row) * cols + col] =
            whole[static_cast<std::size_t>(row) * cols + col];
    // Two places in turn, as the rule about ranks that are ahead asks for.
    float* const matrix = user_floats(seed % 2 * (kUserBytes / 2));
    copy_in(matrix, own.data(), own.size() * sizeof(float));
    meet();
    all_gather(*cuda_device, gather_of_rows(*exchange, 1, matrix, num_rows, cols, bounds), *stream);
    end_round(*cuda_device, exchange->view(), 1, *stream);
    std::vector<float> found(whole.size());
    check(cudaMemcpyAsync(found.data(), matrix, found.size() * sizeof(float),
                          cudaMemcpyDeviceToHost, stream->view().get()));
    finish();
    EXPECT_TRUE(same_bits<float>(whole, found)) << num_rows << " x " << cols;
  }

  void gathers_tiles(int num_rows, int cols, std::span<const int> bounds, unsigned seed) {
    const std::vector<Bf16> whole =
        random_bf16(static_cast<std::size_t>(num_rows) * cols, 1.0F, seed);
    const int width = bounds[rank() + 1] - bounds[rank()];
    std::vector<Bf16> own(tiles_elements(num_rows, width));
    for (int row = 0; row < num_rows; ++row)
      for (int col = 0; col < width; ++col)
        own[tiles_index(row, col, width)] =
            whole[static_cast<std::size_t>(row) * cols + bounds[rank()] + col];
    const DeviceBuffer<Bf16> part = to_device(own, *stream);
    auto* const matrix =
        reinterpret_cast<Bf16*>(exchange->user().data() + seed % 2 * (kUserBytes / 2));
    std::vector<Bf16> found(tiles_elements(num_rows, cols));
    check(cudaMemsetAsync(matrix, 0xff, found.size() * sizeof(Bf16), stream->view().get()));
    stream->synchronize();
    meet();
    all_gather(
        *cuda_device,
        gather_of_tiles(*exchange, 1, {part.data(), width}, {matrix, cols}, num_rows, bounds),
        *stream);
    end_round(*cuda_device, exchange->view(), 1, *stream);
    check(cudaMemcpyAsync(found.data(), matrix, found.size() * sizeof(Bf16), cudaMemcpyDeviceToHost,
                          stream->view().get()));
    finish();
    int wrong = 0;
    for (int row = 0; row < num_rows; ++row)
      for (int col = 0; col < cols; ++col)
        wrong += std::memcmp(&found[tiles_index(row, col, cols)],
                             &whole[static_cast<std::size_t>(row) * cols + col], sizeof(Bf16)) != 0;
    EXPECT_EQ(wrong, 0) << num_rows << " x " << cols;
  }

  std::unique_ptr<CudaDevice> cuda_device;
  std::unique_ptr<Stream> stream;
  std::unique_ptr<Exchange> exchange;
};

TEST_F(AllGatherTest, MatricesAreWholeOnEveryRank) {
  ASSERT_NO_FATAL_FAILURE(join(2));
  unsigned seed = 1;
  for (const int num_rows : {1, 3, 8, 63, 64, 65, 200, 1000}) {
    gathers_rows(num_rows, 4096, bounds_of(4096, 16, 2), seed++);
    gathers_tiles(num_rows, 1536, bounds_of(1536, 64, 2), seed++);
  }
  // Neither even nor aligned, as a vocabulary may be.
  for (const int num_rows : {1, 5, 70})
    gathers_rows(num_rows, 1003, bounds_of(1003, 16, 2), seed++);
  gathers_rows(40, 49155, std::vector<int>{0, 16, 49155}, seed++);
}

TEST_F(AllGatherTest, ThreeRanks) {
  ASSERT_NO_FATAL_FAILURE(join(3));
  unsigned seed = 1;
  for (const int num_rows : {1, 8, 300}) {
    gathers_rows(num_rows, 576, bounds_of(576, 16, 3), seed++);
    gathers_tiles(num_rows, 1536, bounds_of(1536, 64, 3), seed++);
    gathers_rows(num_rows, 1003, bounds_of(1003, 16, 3), seed++);
  }
}

TEST_F(AllGatherTest, GatherNormIsTheNormOfTheWhole) {
  ASSERT_NO_FATAL_FAILURE(join(2));
  unsigned seed = 1;
  for (const int cols : {576, 4096, 8192}) {
    for (const int num_rows : {1, 5, 16}) {
      const std::vector<int> bounds = bounds_of(cols, 16, 2);
      const std::vector<float> whole = values(static_cast<std::size_t>(num_rows) * cols, seed++);
      const DeviceBuffer<float> weight = to_device(values(cols, seed++), *stream);
      std::vector<float> own(whole.size());
      std::memset(own.data(), 0xff, own.size() * sizeof(float));
      for (int row = 0; row < num_rows; ++row)
        for (int col = bounds[rank()]; col < bounds[rank() + 1]; ++col)
          own[static_cast<std::size_t>(row) * cols + col] =
              whole[static_cast<std::size_t>(row) * cols + col];
      const DeviceBuffer<float> all = to_device(whole, *stream);
      const DeviceBuffer<float> x = to_device(own, *stream);
      DeviceBuffer<Bf16> expected = poisoned<Bf16>(tiles_elements(num_rows, cols), *stream);
      DeviceBuffer<Bf16> found = poisoned<Bf16>(tiles_elements(num_rows, cols), *stream);
      GatherNormParams params;
      params.exchange = exchange->view();
      params.ordinal = 1;
      params.norm.x = all.data();
      params.norm.x_stride = cols;
      params.norm.weight = weight.data();
      params.norm.eps = 1e-5F;
      params.norm.num_rows = num_rows;
      params.norm.out = {expected.data(), cols};
      std::ranges::copy(bounds, params.bounds);
      rms_norm(*cuda_device, params.norm, *stream);
      params.norm.x = x.data();
      params.norm.out.data = found.data();
      gather_norm(*cuda_device, params, *stream);
      end_round(*cuda_device, exchange->view(), 1, *stream);
      finish();
      const auto a = to_host(expected, *stream);
      const auto b = to_host(found, *stream);
      EXPECT_TRUE(same_bits<Bf16>(a, b)) << num_rows << " x " << cols;
    }
  }
}

// One thread a column of the own part: a value that depends on every column of the row.
__global__ void mix_kernel(const float* from, float* to, int cols, int first, int last, int delay) {
  const int row = blockIdx.x;
  if (delay > 0 && threadIdx.x == 0) {
    const long long until = clock64() + (row * 7919 % 5) * delay;
    while (clock64() < until) {
    }
  }
  __syncthreads();
  for (int col = first + threadIdx.x; col < last; col += blockDim.x) {
    std::uint32_t sum = 0;
    for (int other = 0; other < cols; other += 37)
      sum = sum * 31 + __float_as_uint(from[row * cols + (other + col) % cols]);
    to[row * cols + col] = __uint_as_float((sum & 0x3fffffff) | 0x20000000);
  }
}

// A chain in which every value depends on what every rank computed before, in a graph that runs
// again and again while the ranks are held up now here, now there.
TEST_F(AllGatherTest, ChainsOfExchangesSurviveSkew) {
  ASSERT_NO_FATAL_FAILURE(join(2));
  constexpr int kCols = 1024;
  const std::vector<int> bounds = bounds_of(kCols, 16, 2);
  const int rounds = have_devices_each() ? 200 : 6;
  for (const int num_rows : {4, 400}) {  // packets; whole parts
    const std::size_t size = static_cast<std::size_t>(num_rows) * kCols;
    const std::size_t bytes = size * sizeof(float);
    float* const matrices[] = {user_floats(0), user_floats(kUserBytes / 2)};
    const std::vector<float> first = values(size, 77);
    copy_in(matrices[0], first.data(), bytes);
    constexpr int kLinks = 6;
    const Graph graph = Graph::capture(*stream, [&](StreamView captured) {
      for (int link = 0; link < kLinks; ++link) {
        const int delay = link % 2 == rank() ? 3000 : 0;
        mix_kernel<<<num_rows, 128, 0, captured.get()>>>(matrices[link % 2], matrices[1 - link % 2],
                                                         kCols, bounds[rank()], bounds[rank() + 1],
                                                         delay);
        check(cudaGetLastError());
        all_gather(*cuda_device,
                   gather_of_rows(*exchange, static_cast<std::uint32_t>(link) + 1,
                                  matrices[1 - link % 2], num_rows, kCols, bounds),
                   captured);
      }
      end_round(*cuda_device, exchange->view(), kLinks, captured);
    });
    meet();
    for (int round = 0; round < rounds; ++round)
      graph.launch(*stream);
    std::vector<float> found(size);
    check(cudaMemcpyAsync(found.data(), matrices[0], bytes, cudaMemcpyDeviceToHost,
                          stream->view().get()));
    finish();
    // The same alone.
    const DeviceBuffer<float> a = to_device(first, *stream);
    const DeviceBuffer<float> b(size, *stream);
    for (int link = 0; link < kLinks * rounds; ++link)
      mix_kernel<<<num_rows, 128, 0, stream->view().get()>>>(link % 2 == 0 ? a.data() : b.data(),
                                                             link % 2 == 0 ? b.data() : a.data(),
                                                             kCols, 0, kCols, 0);
    const std::vector<float> expected = to_host(a, *stream);
    EXPECT_TRUE(same_bits<float>(expected, found)) << num_rows << " rows";
    meet();
    refresh_exchange(*cuda_device, *exchange, *stream);
    finish();
  }
}

TEST_F(AllGatherTest, ADeadRankHoldsNobodyUp) {
  ASSERT_NO_FATAL_FAILURE(join(2, 300ms));
  if (rank() == 1) {
    ::kill(::getpid(), SIGKILL);
  }
  await_end(1);
  float* const matrix = user_floats(0);
  const std::vector<int> bounds = bounds_of(4096, 16, 2);
  const auto started = std::chrono::steady_clock::now();
  for (const int num_rows : {1, 1000, 8}) {
    all_gather(*cuda_device, gather_of_rows(*exchange, 1, matrix, num_rows, 4096, bounds), *stream);
    end_round(*cuda_device, exchange->view(), 1, *stream);
  }
  stream->synchronize();
  EXPECT_LT(std::chrono::steady_clock::now() - started, 20s);
  EXPECT_EQ(exchange->stopped(), 3u);
  EXPECT_EQ(exchange->stop_error().code, Errc::kDeadlineExceeded);
  EXPECT_NE(exchange->stop_error().message.find("rank 1 did not answer rank 0"), std::string::npos);
}

TEST_F(AllGatherTest, TheHostCanEndAWait) {
  ASSERT_NO_FATAL_FAILURE(join(2, 60s));
  if (rank() == 1) return;  // it never comes
  all_gather(*cuda_device,
             gather_of_rows(*exchange, 1, user_floats(0), 4, 4096, bounds_of(4096, 16, 2)),
             *stream);
  const auto started = std::chrono::steady_clock::now();
  exchange->stop();
  stream->synchronize();
  EXPECT_LT(std::chrono::steady_clock::now() - started, 30s);
  EXPECT_EQ(exchange->stopped(), 1u);
  EXPECT_EQ(exchange->stop_error().code, Errc::kUnavailable);
}

TEST_F(AllGatherTest, RefusesWhatCannotBe) {
  EXPECT_FALSE(Exchange::create(0, {2, 2, 1024, 1s}));
  EXPECT_FALSE(Exchange::create(0, {0, 9, 1024, 1s}));
  const auto alone = Exchange::create(0, {0, 2, 1024, 1s}).value();
  EXPECT_FALSE(alone->connect(std::vector<int>{-1}));
  EXPECT_FALSE(alone->connect(std::vector<int>{-1, -1}));
}

}  // namespace
}  // namespace thaw::ops::cuda
