#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/ops/cpu/kernels.h"

namespace thaw::ops::cpu {

/// Memory that grows to the largest size asked for and is reused: the hot path allocates nothing.
/// What it holds is undefined after reserve().
template <typename T>
class GrowingBuffer {
 public:
  /// At least `count` elements, aligned to a cache line; valid until the next call.
  T* reserve(std::size_t count) {
    const std::size_t bytes = count * sizeof(T) + kAlignment;
    if (memory_.size() < bytes) memory_.resize(bytes);
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
    return reinterpret_cast<T*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  std::vector<std::byte> memory_;
};

/// What one device's operations need between their parallel parts. One caller at a time.
class Scratch {
 public:
  GrowingBuffer<ActBlock> activations;  ///< linear: rounded rows of x
  GrowingBuffer<float> columns;  ///< linear: x transposed for float weights
  GrowingBuffer<float> partials;  ///< attention: results of single splits
};

}  // namespace thaw::ops::cpu
