// Images on their way to the device, and the digests that prove they are still the same there.

#include "engine/model/cuda/device_image.h"

#include <numeric>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/file.h"
#include "engine/base/memory_map.h"
#include "engine/cuda/check.h"
#include "tests/cuda/gpu_test.h"

namespace thaw::model {
namespace {

using testing::HasSubstr;

// Two whole chunks and some.
constexpr std::size_t kBytes = 2 * kDigestChunkBytes + 48 * 1024 + 16;

std::vector<std::byte> random_bytes(std::size_t size) {
  std::mt19937_64 random(3);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes)
    byte = static_cast<std::byte>(random());
  return bytes;
}

UniqueFd file_of(std::span<const std::byte> bytes) {
  UniqueFd fd = create_memfd("thaw-test-image", bytes.size()).value();
  write_at(fd.get(), bytes, 0).value();
  return fd;
}

TEST(HostDigests, EveryBitAndEveryPlaceCounts) {
  std::vector<std::byte> bytes = random_bytes(kBytes);
  const ChunkDigests whole = host_digests(bytes);
  ASSERT_EQ(whole.chunks.size(), 3u);
  for (const std::size_t at :
       {std::size_t{0}, std::size_t{77}, kDigestChunkBytes - 1, kDigestChunkBytes, kBytes - 1}) {
    bytes[at] ^= std::byte{4};
    const ChunkDigests damaged = host_digests(bytes);
    EXPECT_NE(damaged.summary, whole.summary) << at;
    for (std::size_t chunk = 0; chunk < 3; ++chunk)
      EXPECT_EQ(damaged.chunks[chunk] != whole.chunks[chunk], at / kDigestChunkBytes == chunk)
          << at << " in chunk " << chunk;
    bytes[at] ^= std::byte{4};
  }
  // Units that change places, in the same lane and from lane to lane.
  for (const std::size_t distance : {std::size_t{16}, std::size_t{512 * 16}}) {
    std::swap_ranges(bytes.begin(), bytes.begin() + 16,
                     bytes.begin() + static_cast<std::ptrdiff_t>(distance));
    EXPECT_NE(host_digests(bytes).summary, whole.summary) << distance;
    std::swap_ranges(bytes.begin(), bytes.begin() + 16,
                     bytes.begin() + static_cast<std::ptrdiff_t>(distance));
  }
  EXPECT_EQ(host_digests(bytes).summary, whole.summary);
  // Zeros that are one unit longer.
  const std::vector<std::byte> zeros(64);
  EXPECT_NE(host_digests(std::span(zeros).first(48)).summary, host_digests(zeros).summary);
}

using DeviceImageTest = cuda::GpuTest;

TEST_F(DeviceImageTest, BytesArriveWhateverTheRing) {
  const std::vector<std::byte> bytes = random_bytes(kBytes);
  const UniqueFd fd = file_of(bytes);
  const cuda::Stream stream;
  for (const auto& [readers, slot_bytes] :
       {std::pair{1, std::size_t{4} << 20}, std::pair{3, std::size_t{65536}},
        std::pair{0, std::size_t{100001}}}) {
    const cuda::DeviceBuffer<std::byte> device(kBytes, stream);
    cuda::check(cudaMemsetAsync(device.data(), 0, kBytes, stream.view().get()));
    stream.synchronize();
    const auto report =
        upload_image(fd.get(), device, {.readers = readers, .slot_bytes = slot_bytes});
    ASSERT_TRUE(report) << report.error().message;
    EXPECT_EQ(report->bytes, kBytes);
    EXPECT_GT(report->bytes_per_second(), 0);
    std::vector<std::byte> back(kBytes);
    cuda::copy_to_host<std::byte>(device, back, stream);
    stream.synchronize();
    EXPECT_TRUE(back == bytes) << readers << " readers";
  }
}

TEST_F(DeviceImageTest, DigestsAreTheHostsAndFindDamage) {
  const std::vector<std::byte> bytes = random_bytes(kBytes);
  const UniqueFd fd = file_of(bytes);
  const cuda::Stream stream;
  const cuda::DeviceBuffer<std::byte> device(kBytes, stream);
  ASSERT_TRUE(upload_image(fd.get(), device));
  const auto digests = device_digests(device.span(), stream);
  ASSERT_TRUE(digests) << digests.error().message;
  const ChunkDigests expected = host_digests(bytes);
  EXPECT_EQ(digests->chunks, expected.chunks);
  EXPECT_EQ(digests->summary, expected.summary);
  EXPECT_TRUE(verify_device_image(device.span(), expected.summary, stream));
  cuda::check(cudaMemsetAsync(device.data() + kDigestChunkBytes + 5, 0x55, 1, stream.view().get()));
  const auto damaged = verify_device_image(device.span(), expected.summary, stream);
  ASSERT_FALSE(damaged);
  EXPECT_EQ(damaged.error().code, Errc::kDataLoss);
}

TEST_F(DeviceImageTest, NamesWhatIsWrong) {
  const std::vector<std::byte> bytes = random_bytes(4096);
  const UniqueFd fd = file_of(bytes);
  const cuda::Stream stream;
  const cuda::DeviceBuffer<std::byte> device(8192, stream);
  const auto shorter = upload_image(fd.get(), device);
  ASSERT_FALSE(shorter);
  EXPECT_EQ(shorter.error().code, Errc::kDataLoss);
  EXPECT_THAT(shorter.error().message, HasSubstr("ends at byte 4096; the image has 8192"));
  EXPECT_EQ(upload_image(-1, device).error().code, Errc::kIo);
  EXPECT_THAT(upload_image(fd.get(), device, {.readers = 65}).error().message,
              HasSubstr("65 readers"));
  EXPECT_EQ(upload_image(fd.get(), device.span().subspan(0, 4096),
                         {.timeout = std::chrono::milliseconds(-1)})
                .error()
                .code,
            Errc::kDeadlineExceeded);
  EXPECT_THAT(device_digests(device.span().subspan(0, 8), stream).error().message,
              HasSubstr("8 bytes; a multiple of 16"));
}

}  // namespace
}  // namespace thaw::model
