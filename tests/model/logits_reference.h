#pragma once

// The committed logits of the default model by transformers in float32 (tests/data), and how far
// others are from them.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "engine/base/types.h"
#include "tests/model/model_harness.h"
#include "tests/model/reference_file.h"

namespace thaw::model {

/// Where `make model` puts it.
inline std::string default_model() {
  const char* cache = std::getenv("THAW_CACHE_DIR");
  const char* home = std::getenv("HOME");
  const std::string directory = cache != nullptr && *cache != '\0'
                                    ? cache
                                    : std::string(home != nullptr ? home : "") + "/.cache/thaw";
  return directory + "/models/SmolLM2-135M-Instruct.Q4_1.gguf";
}

using Reference = TopLogits;

inline Reference read_reference() {
  const std::string path = std::string(THAW_SOURCE_DIR) + "/tests/data/logits_reference.bin";
  std::ifstream file(path, std::ios::binary);
  const auto sizes = read_sizes(file, path, "THAWLGT1", 2);
  Reference reference;
  read_top_logits(file, sizes[0], sizes[1], reference);
  check_whole(file, path);
  return reference;
}

struct Agreement {
  double top1 = 0;  ///< share of positions whose best token is the reference's
  double largest_error = 0;  ///< of a logit among the reference's top 64
  double rms_error = 0;
  double logsumexp_error = 0;  ///< the largest
};

inline Agreement compare(const Reference& reference,
                         const std::vector<std::vector<float>>& logits) {
  Agreement agreement;
  double squares = 0;
  for (std::size_t row = 0; row < logits.size(); ++row) {
    const std::size_t at = row * reference.top;
    agreement.top1 += argmax(logits[row]) == static_cast<int>(reference.ids[at]) ? 1.0 : 0.0;
    for (std::size_t i = at; i < at + reference.top; ++i) {
      const double error = std::abs(logits[row][reference.ids[i]] - reference.logits[i]);
      agreement.largest_error = std::max(agreement.largest_error, error);
      squares += error * error;
    }
    const double best = logits[row][argmax(logits[row])];
    double sum = 0;
    for (const float logit : logits[row])
      sum += std::exp(logit - best);
    agreement.logsumexp_error = std::max(agreement.logsumexp_error,
                                         std::abs(best + std::log(sum) - reference.logsumexp[row]));
  }
  agreement.top1 /= static_cast<double>(logits.size());
  agreement.rms_error = std::sqrt(squares / static_cast<double>(reference.ids.size()));
  return agreement;
}

}  // namespace thaw::model
