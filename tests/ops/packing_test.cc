#include "engine/checkpoint/quantize.h"
#include "engine/ops/linear.h"
#include "tests/ops/ops_test_util.h"

namespace thaw::ops {
namespace {

using namespace testing;  // NOLINT: the tests' own helpers

TEST(Packing, ValuesAreStoredInImagesAndFixed) {
  EXPECT_EQ(static_cast<int>(Packing::kVectorF32), 0);
  EXPECT_EQ(static_cast<int>(Packing::kPanelF32), 1);
  EXPECT_EQ(static_cast<int>(Packing::kPanelF16), 2);
  EXPECT_EQ(static_cast<int>(Packing::kPanelBF16), 3);
  EXPECT_EQ(static_cast<int>(Packing::kPanelQ4Scale16), 4);
  EXPECT_EQ(static_cast<int>(Packing::kPanelQ4Scale32), 5);
  EXPECT_EQ(static_cast<int>(Packing::kPanelQ8), 6);
  EXPECT_EQ(static_cast<int>(Packing::kPanelQ6), 7);
  EXPECT_EQ(static_cast<int>(Packing::kPanelQ5Scale16), 8);
  EXPECT_EQ(static_cast<int>(Packing::kPanelQ5Super), 9);
  EXPECT_EQ(static_cast<int>(Packing::kPanelQ2Super), 10);
  EXPECT_EQ(static_cast<int>(Packing::kPanelQ3Super), 11);
  EXPECT_EQ(static_cast<int>(Packing::kPanelIq4), 12);
  EXPECT_EQ(kLastPacking, Packing::kTiledBF16);
}

TEST(Packing, BytesAWeight) {
  // 5 and 8.5 bits a weight: what the decode speed rests on.
  EXPECT_EQ(packed_bytes(Packing::kPanelQ4Scale16, 576, 576), 576U * 576 * 5 / 8);
  EXPECT_EQ(packed_bytes(Packing::kPanelQ8, 49152, 576), 49152U * 576 * 17 / 16);
  // The formats with two levels of scales keep them: 5.625, 2.625 (as stored) and 3.5625 bits.
  EXPECT_EQ(packed_bytes(Packing::kPanelQ5Super, 16, 256), 16U * 256 * 45 / 64);
  EXPECT_EQ(packed_bytes(Packing::kPanelQ2Super, 16, 512), 16U * 512 * 21 / 64);
  EXPECT_EQ(packed_bytes(Packing::kPanelQ3Super, 32, 256), 32U * 256 * 57 / 128);
  EXPECT_EQ(packed_bytes(Packing::kPanelF32, 17, 3), 32U * 3 * 4);
  EXPECT_EQ(packed_bytes(Packing::kVectorF32, 1, 7), 28U);
}

TEST(Packing, ThreadsGiveTheSameBytesAndFillAllOfThem) {
  for (const DType dtype : kAllDTypes) {
    for (const ComputeMode mode : {ComputeMode::kNative, ComputeMode::kExact32}) {
      const std::vector<std::byte> stored = random_matrix(dtype, 37, 256, 7);
      const Packing packing = choose_packing(dtype, mode);
      const std::size_t bytes = packed_bytes(packing, 37, 256);
      std::vector<std::byte> one(bytes, std::byte{0x00});
      std::vector<std::byte> three(bytes, std::byte{0xff});
      ThreadPool single(1);
      ThreadPool several(3);
      ASSERT_TRUE(pack_matrix(dtype, stored, 37, 256, packing, one, single));
      ASSERT_TRUE(pack_matrix(dtype, stored, 37, 256, packing, three, several));
      EXPECT_EQ(one, three) << checkpoint::dtype_name(dtype);
    }
  }
}

TEST(Packing, RoundedAtLoadIsTheImageOfAStoredQ8_0) {
  constexpr std::int64_t kRows = 37;
  constexpr std::int64_t kCols = 96;
  const PackingOptions options{.quantize = Quantize::kQ8_0};
  ThreadPool threads(2);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const std::vector<std::byte> stored = random_matrix(dtype, kRows, kCols, 9);
    std::vector<float> values(kRows * kCols);
    checkpoint::dequantize(dtype, stored, values);
    std::vector<std::byte> rounded(kRows * kCols / 32 * 34);
    ASSERT_TRUE(checkpoint::quantize_q8_0(values, rounded));
    ASSERT_EQ(choose_packing(dtype, kCols, options), Packing::kPanelQ8);
    std::vector<std::byte> expected(packed_bytes(Packing::kPanelQ8, kRows, kCols));
    std::vector<std::byte> packed(expected.size(), std::byte{0xff});
    ASSERT_TRUE(
        pack_matrix(DType::kQ8_0, rounded, kRows, kCols, Packing::kPanelQ8, expected, threads));
    ASSERT_TRUE(pack_matrix(dtype, stored, kRows, kCols, Packing::kPanelQ8, packed, threads));
    EXPECT_EQ(packed, expected) << checkpoint::dtype_name(dtype);
  }
}

TEST(Packing, RoundingAtLoadLeavesTheRestAlone) {
  const PackingOptions q8{.quantize = Quantize::kQ8_0};
  const PackingOptions exact{.mode = ComputeMode::kExact32, .quantize = Quantize::kQ8_0};
  EXPECT_EQ(choose_packing(DType::kBF16, 48, q8), Packing::kPanelBF16) << "no multiple of 32";
  EXPECT_EQ(choose_packing(DType::kF32, 48, q8), Packing::kPanelF32);
  EXPECT_EQ(choose_packing(DType::kQ4_K, 256, q8), Packing::kPanelQ4Scale32);
  EXPECT_EQ(choose_packing(DType::kF16, 64, exact), Packing::kPanelF32);
  EXPECT_EQ(choose_packing(DType::kF16, 64, {}), Packing::kPanelF16);

  ThreadPool threads(1);
  for (const float bad : {std::nanf(""), INFINITY, 1e8F}) {
    std::vector<float> values(16 * 32, 1.0F);
    values[100] = bad;
    std::vector<std::byte> out(544);
    const auto packed = pack_matrix(DType::kF32, std::as_bytes(std::span(values)), 16, 32,
                                    Packing::kPanelQ8, out, threads);
    ASSERT_FALSE(packed) << bad;
    EXPECT_NE(packed.error().message.find("not finite, or too large for Q8_0"), std::string::npos);
  }
}

TEST(Packing, RoundedTo16BitsIsTheImageOfStored16Bits) {
  ThreadPool threads(1);
  const std::vector<float> values = {1.0F, 1.00390625F, -3.14159F, 1e-3F, 65504.0F, -0.0F};
  const auto pack = [&](DType dtype, std::span<const std::byte> stored, Packing packing) {
    std::vector<std::byte> out(packed_bytes(packing, 2, 3));
    const auto packed = pack_matrix(dtype, stored, 2, 3, packing, out, threads);
    EXPECT_TRUE(packed);
    return out;
  };
  for (const auto& [dtype, quantize] :
       {std::pair(DType::kF16, Quantize::kF16), std::pair(DType::kBF16, Quantize::kBF16)}) {
    std::vector<std::uint16_t> stored;
    for (const float value : values)
      stored.push_back(dtype == DType::kF16 ? float_to_f16(value) : float_to_bf16(value));
    const Packing packing = choose_packing(DType::kF32, 3, {.quantize = quantize});
    EXPECT_EQ(packing, choose_packing(dtype, ComputeMode::kNative));
    EXPECT_EQ(pack(DType::kF32, std::as_bytes(std::span(values)), packing),
              pack(dtype, std::as_bytes(std::span(stored)), packing));
  }
  const std::vector<float> large = {1e6F, 0, 0, 0, 0, 0};
  std::vector<std::byte> out(packed_bytes(Packing::kPanelF16, 2, 3));
  EXPECT_FALSE(pack_matrix(DType::kF32, std::as_bytes(std::span(large)), 2, 3, Packing::kPanelF16,
                           out, threads));
}

TEST(Packing, VectorsStayRowMajor) {
  const std::vector<std::byte> stored = random_matrix(DType::kBF16, 3, 5, 8);
  std::vector<float> expected(15);
  checkpoint::dequantize(DType::kBF16, stored, expected);
  std::vector<std::byte> packed(60);
  ThreadPool threads(2);
  ASSERT_TRUE(pack_matrix(DType::kBF16, stored, 3, 5, Packing::kVectorF32, packed, threads));
  EXPECT_EQ(std::memcmp(packed.data(), expected.data(), 60), 0);
  auto device = make_device("generic");
  std::vector<float> row(5);
  const std::int32_t id = 2;
  embedding(*device, {Packing::kVectorF32, 3, 5, packed.data()}, {&id, 1}, row.data());
  EXPECT_EQ(row, std::vector<float>(expected.begin() + 10, expected.end()));
}

std::string error_of(DType dtype, std::int64_t rows, std::int64_t cols, Packing packing,
                     std::size_t stored_bytes, std::size_t out_bytes) {
  const std::vector<std::byte> stored(stored_bytes);
  std::vector<std::byte> out(out_bytes);
  ThreadPool threads(1);
  const Result<void> result = pack_matrix(dtype, stored, rows, cols, packing, out, threads);
  return result ? "" : result.error().message;
}

TEST(Packing, BadShapesAreNamed) {
  EXPECT_NE(error_of(DType::kQ4_1, 1, 33, Packing::kPanelQ4Scale16, 20, 320).find("multiple of 32"),
            std::string::npos);
  EXPECT_NE(error_of(DType::kQ6_K, 1, 32, Packing::kPanelQ6, 210, 640).find("multiple of 256"),
            std::string::npos);
  EXPECT_NE(error_of(DType::kQ4_1, 0, 32, Packing::kPanelQ4Scale16, 0, 0).find("0 x 32"),
            std::string::npos);
  EXPECT_NE(error_of(DType::kQ4_1, 1, 32, Packing::kPanelQ8, 20, 544).find("Q4_1"),
            std::string::npos);
  EXPECT_NE(error_of(DType::kQ4_1, 1, 32, Packing::kPanelQ4Scale16, 19, 320).find("19 bytes"),
            std::string::npos);
  EXPECT_NE(error_of(DType::kQ4_1, 1, 32, Packing::kPanelQ4Scale16, 20, 300).find("300 bytes"),
            std::string::npos);
}

TEST(CpuDevice, ChoosesAndNamesInstructionSets) {
  EXPECT_EQ(make_device("generic")->isa(), CpuIsa::kGeneric);
  auto best = make_device("", 2);
  EXPECT_EQ(best->kernel_set(), "cpu-1");
  EXPECT_EQ(available_isas().back(), cpu_isa_name(best->isa()));
  const auto unknown = CpuDevice::create(1, "sse9");
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, Errc::kInvalidArgument);
  EXPECT_NE(unknown.error().message.find("sse9"), std::string::npos);
  EXPECT_NE(unknown.error().message.find("avx512vnni"), std::string::npos);
  const auto none = CpuDevice::create(0);
  ASSERT_FALSE(none);
  EXPECT_NE(none.error().message.find("0"), std::string::npos);
}

}  // namespace
}  // namespace thaw::ops
