#include "engine/base/crc32c.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#include <random>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

namespace thaw {
namespace {

TEST(Crc32c, KnownValues) {
  const auto of = [](std::string_view text) {
    return crc32c(std::as_bytes(std::span(text.data(), text.size())));
  };
  EXPECT_EQ(of(""), 0U);
  EXPECT_EQ(of("123456789"), 0xE3069283U);  // the check value of the CRC catalogue
  // RFC 3720, B.4.
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0})), 0x8A9136AAU);
  EXPECT_EQ(crc32c(std::vector<std::byte>(32, std::byte{0xFF})), 0x62A8AB43U);
}

TEST(Crc32c, PiecesAndCombinationEqualTheWhole) {
  std::mt19937 random(7);
  std::vector<std::byte> data(70000);
  for (std::byte& byte : data)
    byte = static_cast<std::byte>(random());
  const std::uint32_t whole = crc32c(data);
  const std::span<const std::byte> bytes(data);
  for (std::size_t cut : {0UL, 1UL, 15UL, 4096UL, 65536UL, 69999UL, 70000UL}) {
    const std::uint32_t a = crc32c(bytes.first(cut));
    const std::uint32_t b = crc32c(bytes.subspan(cut));
    EXPECT_EQ(crc32c(bytes.subspan(cut), a), whole) << "cut at " << cut;
    EXPECT_EQ(crc32c_combine(a, b, data.size() - cut), whole) << "cut at " << cut;
  }
}

#if defined(__x86_64__)
/// Bits of the state components that hold something: 2 the upper halves of YMM, 6 those of ZMM.
__attribute__((target("xsave"))) std::uint64_t vector_state_in_use() {
  return _xgetbv(1);
}

// Dirty upper halves slow every SSE instruction that this thread runs afterwards.
TEST(Crc32c, LeavesNoVectorRegisterDirty) {
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  constexpr unsigned kXgetbv1 = 1U << 2;
  if (__get_cpuid_count(0xd, 1, &a, &b, &c, &d) == 0 || (a & kXgetbv1) == 0)
    GTEST_SKIP() << "this processor does not tell which registers are in use";
  const std::vector<std::byte> data(100000, std::byte{3});
  EXPECT_NE(crc32c(data), 0U);
  EXPECT_EQ(vector_state_in_use() & 0x44U, 0U);
}
#endif

}  // namespace
}  // namespace thaw
