#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/types.h"

namespace thaw::kvsnap {

/// Larger handle.json files are refused: a prompt of millions of tokens fits.
inline constexpr std::size_t kMaxHandleJsonBytes = std::size_t{64} << 20;

/// What handle.json says of a session at a fork point (FORMAT.md). Paths are not kept: files of a
/// handle have fixed names in its directory.
struct Handle {
  std::string model_id;
  std::uint64_t prefix_tokens = 0;  ///< in the blocks: blocks times block size
  std::vector<std::uint64_t> block_shape;  ///< [2, block_size, kv_heads, head_dim]
  std::uint32_t num_layers = 0;
  std::int64_t max_block_id = -1;  ///< -1: no blocks
  std::uint64_t num_kv_blocks = 0;
  std::string handle_id;  ///< 32 hex digits; empty in the oldest handles
  std::optional<std::string> parent_id;
  std::optional<std::string> label;
  std::optional<std::vector<TokenId>> prefix_token_ids;  ///< of the prompt; may be cut short
  std::optional<std::string> prefix_preview;  ///< its text; may be cut short
  std::uint32_t tensor_parallel_size = 1;
  std::optional<std::string> vllm_version;  ///< of the engine that wrote it
  double created_at = 0;  ///< Unix seconds; 0: not known
  bool has_weights = false;

  /// handle.json, with the names of the files as its paths. Errors: kInvalidArgument where a text
  /// is not UTF-8.
  Result<std::string> to_json() const;
  /// Unknown keys are passed over. Errors: kUnsupported for another version than 1; kDataLoss,
  /// saying what is wrong; none names the file.
  static Result<Handle> parse(std::string_view json);
};

/// Random: 32 hex digits. Errors: kIo where the system has no random bytes.
Result<std::string> new_handle_id();

}  // namespace thaw::kvsnap
