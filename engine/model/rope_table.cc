#include "engine/model/rope_table.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace thaw::model {

void fill_rope_rows(std::span<const double> frequencies, double magnitude, int first,
                    std::span<float> cos, std::span<float> sin) {
  const std::size_t pairs = frequencies.size();
  for (std::size_t row = 0; row < cos.size() / pairs; ++row) {
    const int position = first + static_cast<int>(row);
    for (std::size_t i = 0; i < pairs; ++i) {
      const double angle = position * frequencies[i];
      cos[row * pairs + i] = static_cast<float>(magnitude * std::cos(angle));
      sin[row * pairs + i] = static_cast<float>(magnitude * std::sin(angle));
    }
  }
}

RopeTables::RopeTables(std::vector<double> frequencies, double magnitude, bool half_split)
    : frequencies_(std::move(frequencies)), magnitude_(magnitude), half_split_(half_split) {}

void RopeTables::reserve(int count, int limit) {
  const std::size_t pairs = frequencies_.size();
  const auto have = static_cast<int>(cos_.size() / pairs);
  if (count <= have) return;
  const int wanted = std::min(std::max({count, 2 * have, 1024}), std::max(limit, count));
  cos_.resize(static_cast<std::size_t>(wanted) * pairs);
  sin_.resize(cos_.size());
  const std::size_t filled = static_cast<std::size_t>(have) * pairs;
  fill_rope_rows(frequencies_, magnitude_, have, std::span(cos_).subspan(filled),
                 std::span(sin_).subspan(filled));
}

ops::RopeTable RopeTables::view() const {
  return {cos_.data(), sin_.data(), 2 * static_cast<int>(frequencies_.size()), half_split_};
}

}  // namespace thaw::model
