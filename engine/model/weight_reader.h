#pragma once

#include <optional>
#include <span>
#include <string>

#include "engine/base/result.h"
#include "engine/checkpoint/weight_image.h"
#include "engine/ops/packed_weight.h"

namespace thaw::model {

/// Takes views out of a WeightImage, checking shape and packing. The first error sticks: callers
/// read everything and then ask for error().
class WeightReader {
 public:
  explicit WeightReader(const checkpoint::WeightImageView& image) : image_(image) {}

  bool has(const std::string& name) const { return image_.find(name) != nullptr; }
  ops::WeightView matrix(const std::string& name, std::int64_t rows, std::int64_t cols);
  /// `size` float32 values.
  std::span<const float> vector(const std::string& name, std::int64_t size);
  const std::optional<Error>& error() const { return error_; }

 private:
  const checkpoint::WeightEntry* checked(const std::string& name, std::int64_t rows,
                                         std::int64_t cols);

  const checkpoint::WeightImageView& image_;
  std::optional<Error> error_;
};

}  // namespace thaw::model
