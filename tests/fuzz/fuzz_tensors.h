#pragma once

#include <cstdint>
#include <cstdlib>
#include <vector>

#include "engine/checkpoint/dequantize.h"
#include "engine/checkpoint/stored_tensor.h"

namespace thaw {

/// Reads every byte of every tensor, and expands what is small, so that a view that leaves its file
/// is seen.
inline void read_all(const checkpoint::TensorSource& source) {
  std::uint64_t sum = 0;
  for (const checkpoint::StoredTensor& tensor : source.tensors()) {
    for (const std::byte byte : tensor.data)
      sum += static_cast<std::uint64_t>(byte);
    const auto elements = static_cast<std::uint64_t>(tensor.rows() * tensor.cols());
    if (elements > 4096) continue;
    std::vector<float> values(elements);
    checkpoint::dequantize(tensor.dtype, tensor.data, values);
    if (source.find_tensor(tensor.name) != &tensor) std::abort();
  }
  if (sum == ~std::uint64_t{0}) std::abort();  // keeps the loop
}

}  // namespace thaw
