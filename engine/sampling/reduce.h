#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "engine/base/draw.h"
#include "engine/base/result.h"

namespace thaw::sampling {

/// The largest logit. Errors: a NaN or +infinity, with its token; nothing but -infinity.
Result<float> checked_max(std::span<const float> logits);

/// First index of `value`. REQUIRES: it occurs.
std::size_t index_of(std::span<const float> logits, float value);

/// weights[i] = draw_weight(logits[i], ...), in vectors as wide as the processor has.
void compute_weights(std::span<const float> logits, float largest, float temperature, float min_p,
                     double* weights);

/// The variants of compute_weights() that this processor can run; they give the same bits.
using ComputeWeights = void(std::span<const float> logits, float largest, float temperature,
                            float min_p, double* weights);
std::vector<ComputeWeights*> compute_weights_variants();

/// One sum for each kDrawBlockTokens of `weights`, in the order of base/draw.h. `sums` is
/// overwritten. Returns their sum, in order.
double sum_blocks(std::span<const double> weights, std::vector<double>& sums);

/// The token in which `target` of the summed weight falls: first the block, then the group inside
/// it, then the token. `sums` as sum_blocks() gives them. REQUIRES: some token weighs something.
std::size_t pick(std::span<const double> weights, std::span<const double> sums, double target);

/// In the order of the elements.
double ordered_sum(std::span<const double> values);

}  // namespace thaw::sampling
