#include "engine/checkpoint/quantize.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "engine/base/half.h"

namespace thaw::checkpoint {
namespace {

constexpr std::size_t kBlock = 32;
constexpr std::size_t kBlockBytes = 34;

/// Halves away from zero. |value| stays far below 2^22, so value + 0.5 in double is exact.
int round_away(float value) {
  const double size = std::floor(std::abs(static_cast<double>(value)) + 0.5);
  return static_cast<int>(value < 0.0F ? -size : size);
}

bool quantize_block(const float* values, std::byte* stored) {
  float largest = 0.0F;
  bool finite = true;
  for (std::size_t i = 0; i < kBlock; ++i) {
    finite = finite && std::isfinite(values[i]);
    largest = std::max(largest, std::abs(values[i]));
  }
  if (!finite) return false;
  const float scale = largest / 127.0F;
  const std::uint16_t half = float_to_f16(scale);
  if (!std::isfinite(f16_to_float(half))) return false;
  std::memcpy(stored, &half, sizeof(half));
  // A scale below 2^-128 has no finite reciprocal; as f16 it is zero, and so is the block.
  const float reciprocal = 1.0F / scale;
  const float inverse = std::isfinite(reciprocal) ? reciprocal : 0.0F;
  for (std::size_t i = 0; i < kBlock; ++i)
    stored[2 + i] = static_cast<std::byte>(round_away(values[i] * inverse));
  return true;
}

}  // namespace

bool quantize_q8_0(std::span<const float> values, std::span<std::byte> stored) {
  bool done = true;
  for (std::size_t block = 0; block < values.size() / kBlock; ++block)
    done =
        quantize_block(values.data() + block * kBlock, stored.data() + block * kBlockBytes) && done;
  return done;
}

}  // namespace thaw::checkpoint
