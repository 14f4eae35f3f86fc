#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/types.h"
#include "kvsnap/file_io.h"

namespace thaw::kvsnap {

inline constexpr const char* kRolloutFile = "rollout.json";
/// Larger rollout.json files are refused.
inline constexpr std::size_t kMaxRolloutBytes = std::size_t{64} << 20;

/// A token that was, or could have been, chosen at some place.
struct TokenChoice {
  TokenId token_id = 0;
  std::optional<std::string> text;
  std::optional<double> logprob;  ///< natural logarithm; nothing: not captured, or minus infinity
};

/// One generated token and what else was likely there, likeliest first.
struct RolloutToken {
  TokenChoice chosen;
  std::vector<TokenChoice> topk;
};

/// How likely a rollout was, over the tokens that have a logprob.
struct RolloutScores {
  std::size_t num_scored = 0;
  double seq_logprob = 0;  ///< their sum
  double mean_logprob = 0;
  double perplexity = 0;
};

/// One sampled continuation of a prompt (rollout.json, FORMAT.md).
struct Rollout {
  std::string rollout_id;
  std::optional<std::string> parent_id;  ///< handle that it was forked from
  std::optional<std::string> label;
  std::string model_id;
  std::vector<TokenId> prompt_token_ids;
  std::uint64_t fork_index = 0;  ///< of the first generated token in prompt and continuation
  std::string sampling_json = "{}";  ///< an object: temperature, top_p, top_k, seed, n
  std::string text;
  std::vector<RolloutToken> tokens;
  double created_at = 0;  ///< Unix seconds; 0: not known

  /// Nothing where no token has a logprob.
  std::optional<RolloutScores> scores() const;

  /// Errors: kInvalidArgument where a text is not UTF-8.
  Result<std::string> to_json() const;
  /// Unknown keys are passed over, and so are numbers that JSON does not know (NaN, Infinity),
  /// which Python writes. Errors: kUnsupported for another version than 1; kDataLoss, saying what
  /// is wrong; none names the file.
  static Result<Rollout> parse(std::string_view json);
};

/// Reads a rollout: `path` is the file, or a directory that holds rollout.json. Errors name it;
/// kNotFound where there is none.
Result<Rollout> read_rollout(FileIo& io, const std::string& path);

}  // namespace thaw::kvsnap
