#include "engine/checkpoint/stored_tensor.h"

#include <algorithm>

#include "engine/base/hash.h"

namespace thaw::checkpoint {
namespace {

constexpr std::size_t kStepBytes = std::size_t{16} << 20;

}  // namespace

std::int64_t StoredTensor::rows() const {
  std::int64_t product = 1;
  for (std::size_t i = 1; i < shape.size(); ++i)
    product *= shape[i];
  return product;
}

Hash128 hash_and_drop(const Mapping& file) {
  Hasher hasher;
  for (std::span<const std::byte> rest = file.bytes(); !rest.empty();) {
    const auto step = rest.first(std::min(rest.size(), kStepBytes));
    hasher.update(step);
    drop_pages(step);
    rest = rest.subspan(step.size());
  }
  return hasher.finish();
}

}  // namespace thaw::checkpoint
