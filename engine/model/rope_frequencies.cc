#include "engine/model/rope_frequencies.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace thaw::model {
namespace {

constexpr double kTurn = 2.0 * std::numbers::pi;

double llama3(const RopeConfig& rope, double frequency) {
  const double turns = rope.original_positions * frequency / kTurn;
  if (turns > rope.high_freq_factor) return frequency;
  if (turns < rope.low_freq_factor) return frequency / rope.factor;
  const double smooth =
      (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  return (1.0 - smooth) * frequency / rope.factor + smooth * frequency;
}

/// Where on the ramp of YaRN the pairs lie: 0 turns as trained, 1 is divided by the factor.
class YarnRamp {
 public:
  explicit YarnRamp(const RopeConfig& rope)
      : low_(pair_of_turns(rope, rope.beta_fast)), high_(pair_of_turns(rope, rope.beta_slow)) {
    if (rope.truncate) {
      low_ = std::floor(low_);
      high_ = std::ceil(high_);
    }
    low_ = std::max(low_, 0.0);
    high_ = std::min(high_, rope.dim - 1.0);
    if (low_ == high_) high_ += 0.001;
  }
  double at(int pair) const { return std::clamp((pair - low_) / (high_ - low_), 0.0, 1.0); }

 private:
  /// The pair, as a real number, that turns so often in the original context.
  static double pair_of_turns(const RopeConfig& rope, double turns) {
    return rope.dim * std::log(rope.original_positions / (turns * kTurn)) /
           (2.0 * std::log(rope.theta));
  }

  double low_;
  double high_;
};

}  // namespace

std::vector<double> rope_frequencies(const RopeConfig& rope, std::span<const float> factors) {
  std::vector<double> frequencies;
  for (int i = 0; i < rope.dim / 2; ++i) {
    const double frequency = std::pow(rope.theta, -2.0 * i / rope.dim);
    frequencies.push_back(factors.empty() ? frequency
                                          : frequency / static_cast<double>(factors[i]));
  }
  switch (rope.scaling) {
    case RopeScaling::kNone:
      break;
    case RopeScaling::kLinear:
      for (double& frequency : frequencies)
        frequency /= rope.factor;
      break;
    case RopeScaling::kLlama3:
      for (double& frequency : frequencies)
        frequency = llama3(rope, frequency);
      break;
    case RopeScaling::kYarn: {
      const YarnRamp ramp(rope);
      for (int i = 0; i < rope.dim / 2; ++i) {
        const double slowed = ramp.at(i);
        frequencies[i] = frequencies[i] / rope.factor * slowed + frequencies[i] * (1.0 - slowed);
      }
      break;
    }
  }
  return frequencies;
}

}  // namespace thaw::model
