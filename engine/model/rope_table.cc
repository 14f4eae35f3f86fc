#include "engine/model/rope_table.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace thaw::model {

RopeTables::RopeTables(std::vector<double> frequencies, double magnitude, bool half_split)
    : frequencies_(std::move(frequencies)), magnitude_(magnitude), half_split_(half_split) {}

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
      cos_[position * pairs + i] = static_cast<float>(magnitude_ * std::cos(angle));
      sin_[position * pairs + i] = static_cast<float>(magnitude_ * std::sin(angle));
    }
  }
}

ops::RopeTable RopeTables::view() const {
  return {cos_.data(), sin_.data(), 2 * static_cast<int>(frequencies_.size()), half_split_};
}

}  // namespace thaw::model
