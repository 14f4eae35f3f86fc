#pragma once

#include <span>
#include <vector>

#include "engine/model/config.h"

namespace thaw::model {

/// Radians per position of each rotated pair, [rope.dim / 2], computed in double. Pair i turns by
/// theta^(-2i/dim), divided by `factors[i]` where given (GGUF's rope_freqs.weight), and then scaled
/// as `rope` says:
/// - linear: divided by the factor;
/// - llama3: pairs that turn less than low_freq_factor times in the original context are divided by
///   the factor, those that turn more than high_freq_factor times are not, with a straight line in
///   between;
/// - yarn: the same idea with a ramp over the pairs' indices, from beta_fast turns to beta_slow.
/// Nothing depends on how long a text is. Sources: Su et al., arXiv:2104.09864; the Llama 3 report,
/// arXiv:2407.21783; Peng et al., arXiv:2309.00071; transformers, modeling_rope_utils.py.
std::vector<double> rope_frequencies(const RopeConfig& rope, std::span<const float> factors);

}  // namespace thaw::model
