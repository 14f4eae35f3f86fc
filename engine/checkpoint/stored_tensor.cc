#include "engine/checkpoint/stored_tensor.h"

namespace thaw::checkpoint {

std::int64_t StoredTensor::rows() const {
  std::int64_t product = 1;
  for (std::size_t i = 1; i < shape.size(); ++i)
    product *= shape[i];
  return product;
}

}  // namespace thaw::checkpoint
