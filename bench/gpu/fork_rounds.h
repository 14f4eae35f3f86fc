#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace thaw::bench {

/// Fork rounds through the scheduler, milliseconds, medians: `branches` requests at once over one
/// trunk, each with a question of its own and 64 greedy tokens.
struct ForkRound {
  std::size_t branches = 0;
  double cold_ms = 0;  ///< nothing cached
  double warm_ms = 0;  ///< the trunk cached, new questions
  double cold_first_token_ms = 0;  ///< of the first branch
  double warm_first_token_ms = 0;
  std::size_t cold_prefilled = 0;  ///< tokens computed of all prompts, of trunk_tokens + questions
  std::size_t warm_prefilled = 0;
};

struct ForkRoundFigures {
  std::size_t trunk_tokens = 0;
  std::size_t question_tokens = 0;
  std::size_t generated_tokens = 0;  ///< by each branch
  std::vector<ForkRound> rounds;
  double admit_us = 0;  ///< host time of add() for one branch on the cached trunk, microseconds
};

/// On random bf16 weights of an 8B Llama's shape on device 0. Throws what the device fails with.
ForkRoundFigures measure_fork_rounds(const std::vector<std::size_t>& branches, int repeats);

std::string to_json(const ForkRoundFigures& figures);

}  // namespace thaw::bench
