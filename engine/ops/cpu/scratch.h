#pragma once

#include <cstddef>
#include <memory>
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
    const std::size_t bytes = count * sizeof(T);
    if (memory_.size() < bytes + kAlignment) memory_.resize(bytes + kAlignment);
    void* start = memory_.data();
    std::size_t space = memory_.size();
    return static_cast<T*>(std::align(kAlignment, bytes, start, space));
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
  GrowingBuffer<ActBlock> first_step;  ///< linear_two_step: rows of x rounded once
  GrowingBuffer<float> both_steps;  ///< linear_two_step: rows of x, then what rounding leaves over
  GrowingBuffer<float> both_products;  ///< linear_two_step: the products of both
  GrowingBuffer<float> partials;  ///< attention: results of single splits
};

}  // namespace thaw::ops::cpu
