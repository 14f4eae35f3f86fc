#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coalescer/openai/answer.h"
#include "coalescer/openai/call.h"

namespace thaw::coalescer {

/// One branch of POST /v1/forks: the call that it is by itself.
struct ForkBranch {
  std::string label;
  ApiCall call;
};

/// A trunk that the server has.
struct StoredTrunk {
  std::string session_id;  ///< this session as it stands; empty: another trunk
  std::string response_id;  ///< this chat completion, which may be running
  std::uint32_t choice = 0;  ///< of the response
  std::optional<std::uint32_t> token;  ///< of the choice, how many are kept; without: all there are

  bool is_given() const { return !session_id.empty() || !response_id.empty(); }
};

/// POST /v1/forks: what several calls begin with, and how each goes on.
struct ForksCall {
  ApiKind kind = ApiKind::kChat;
  StoredTrunk stored;  ///< not given: the branches' calls hold the trunk
  std::vector<ForkBranch> branches;  ///< at least one; all of one model
  bool stream = false;
  bool include_usage = false;
};

/// Reads a body: `trunk`, `forks`, and fields that are every branch's unless it has its own. Errors
/// name the field, of a branch as `forks[2].temperature`. `max_choices`: of all branches together.
ApiResult<ForksCall> parse_forks(std::string_view body, const ServedModels& models,
                                 std::uint32_t max_choices);

/// The answer of all branches as one body: `bodies` are the calls' own, or JSON error objects.
std::string forks_body(const CompletionLabel& label, const std::vector<std::string>& bodies,
                       const CompletionUsage& usage);

/// The last frame of a multiplexed stream: the sum of what its branches used.
std::string forks_usage_frame(const CompletionLabel& label, const CompletionUsage& usage);

/// The error object of one branch.
std::string branch_error_body(std::size_t branch, const std::string& label, const ApiError& error);

}  // namespace thaw::coalescer
