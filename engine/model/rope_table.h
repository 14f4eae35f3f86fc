#pragma once

#include <span>
#include <vector>

#include "engine/ops/elementwise.h"

namespace thaw::model {

/// Cosines and sines for absolute positions, [positions, rotary_dim/2] float32, computed in double
/// and rounded once; grows by doubling, so that a context of 128K costs nothing until it is used. A
/// value depends on its position and pair only. Frequency of pair i: theta^(-2i/rotary_dim),
/// divided by `factors[i]` where given (Llama 3's rope_freqs). Not thread-safe.
/// Source: Su et al., arXiv:2104.09864.
class RopeTables {
 public:
  RopeTables(double theta, int rotary_dim, bool half_split, std::span<const float> factors);

  /// Makes positions 0 .. count-1 available. `limit` bounds the doubling.
  void reserve(int count, int limit);
  /// Valid until the next reserve().
  ops::RopeTable view() const;

 private:
  int rotary_dim_;
  bool half_split_;
  std::vector<double> frequencies_;
  std::vector<float> cos_;
  std::vector<float> sin_;
};

}  // namespace thaw::model
