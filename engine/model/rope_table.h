#pragma once

#include <span>
#include <vector>

#include "engine/ops/elementwise.h"

namespace thaw::model {

/// Cosines and sines of as many positions from `first` on as `cos` and `sin` have room for,
/// [positions][frequencies.size()], times `magnitude`: computed in double, rounded once.
void fill_rope_rows(std::span<const double> frequencies, double magnitude, int first,
                    std::span<float> cos, std::span<float> sin);

/// Cosines and sines for absolute positions, [positions, rotary_dim/2] float32, computed in double
/// and rounded once; grows by doubling, so that a context of 128K costs nothing until it is used. A
/// value depends on its position and pair only. Both are multiplied by `magnitude` (YaRN) before
/// they are rounded. Not thread-safe.
/// Source: Su et al., arXiv:2104.09864.
class RopeTables {
 public:
  /// `frequencies`: radians per position of each pair (rope_frequencies).
  RopeTables(std::vector<double> frequencies, double magnitude, bool half_split);

  /// Makes positions 0 .. count-1 available. `limit` bounds the doubling.
  void reserve(int count, int limit);
  /// Valid until the next reserve().
  ops::RopeTable view() const;

 private:
  std::vector<double> frequencies_;
  double magnitude_;
  bool half_split_;
  std::vector<float> cos_;
  std::vector<float> sin_;
};

}  // namespace thaw::model
