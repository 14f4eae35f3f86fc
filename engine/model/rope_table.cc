#include "engine/model/rope_table.h"

#include <algorithm>
#include <cmath>

namespace thaw::model {

RopeTables::RopeTables(double theta, int rotary_dim, bool half_split,
                       std::span<const float> factors)
    : rotary_dim_(rotary_dim), half_split_(half_split) {
  for (int i = 0; i < rotary_dim / 2; ++i) {
    const double frequency = std::pow(theta, -2.0 * i / rotary_dim);
    frequencies_.push_back(factors.empty() ? frequency
                                           : frequency / static_cast<double>(factors[i]));
  }
}

void RopeTables::reserve(int count, int limit) {
  const std::size_t pairs = frequencies_.size();
  const auto have = static_cast<int>(cos_.size() / pairs);
  if (count <= have) return;
  const int wanted = std::min(std::max({count, 2 * have, 1024}), std::max(limit, count));
  cos_.resize(static_cast<std::size_t>(wanted) * pairs);
  sin_.resize(cos_.size());
  for (int position = have; position < wanted; ++position) {
    for (std::size_t i = 0; i < pairs; ++i) {
      const double angle = position * frequencies_[i];
      cos_[position * pairs + i] = static_cast<float>(std::cos(angle));
      sin_[position * pairs + i] = static_cast<float>(std::sin(angle));
    }
  }
}

ops::RopeTable RopeTables::view() const {
  return {cos_.data(), sin_.data(), rotary_dim_, half_split_};
}

}  // namespace thaw::model
