#include "engine/base/crc32c.h"

#include <algorithm>

#include <isa-l/crc.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace thaw {
namespace {

constexpr std::size_t kMostAtOnce = std::size_t{1} << 30;  // the library counts in int
constexpr std::uint32_t kPolynomial = 0x82F63B78;  // bit-reversed: bit 31 is the coefficient of 1

// The library's AVX-512 code leaves the upper halves of vector registers dirty. Until something
// clears them, SSE code of this thread, which is most of the program, runs up to 70 times slower.
#if defined(__x86_64__)
__attribute__((target("avx"))) void zero_upper_halves() {
  _mm256_zeroupper();
}
void clear_vector_registers() {
  if (__builtin_cpu_supports("avx")) zero_upper_halves();
}
#else
void clear_vector_registers() {}
#endif

// a * b modulo the polynomial, both bit-reversed.
std::uint32_t multiply(std::uint32_t a, std::uint32_t b) {
  std::uint32_t product = 0;
  for (std::uint32_t bit = 0x80000000; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = (b & 1) != 0 ? (b >> 1) ^ kPolynomial : b >> 1;  // b *= x
  }
  return product;
}

}  // namespace

std::uint32_t crc32c(std::span<const std::byte> data, std::uint32_t previous) {
  std::uint32_t state = ~previous;
  while (!data.empty()) {
    const auto part = data.first(std::min(data.size(), kMostAtOnce));
    // The library takes a non-const pointer but only reads.
    auto* bytes = reinterpret_cast<unsigned char*>(const_cast<std::byte*>(part.data()));
    state = crc32_iscsi(bytes, static_cast<int>(part.size()), state);
    data = data.subspan(part.size());
  }
  clear_vector_registers();
  return ~state;
}

// Appending B shifts A's remainder by its bits: times x^(8 * size), by squaring.
Crc32cCombiner::Crc32cCombiner(std::uint64_t size_b_bytes) {
  std::uint32_t power = 0x00800000;  // x^8
  for (std::uint64_t rest = size_b_bytes; rest != 0; rest >>= 1) {
    if ((rest & 1) != 0) power_ = multiply(power, power_);
    power = multiply(power, power);
  }
}

std::uint32_t Crc32cCombiner::operator()(std::uint32_t crc_a, std::uint32_t crc_b) const {
  return multiply(power_, crc_a) ^ crc_b;
}

std::uint32_t crc32c_combine(std::uint32_t crc_a, std::uint32_t crc_b, std::uint64_t size_b_bytes) {
  return Crc32cCombiner(size_b_bytes)(crc_a, crc_b);
}

}  // namespace thaw
