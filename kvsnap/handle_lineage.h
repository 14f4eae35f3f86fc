#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kvsnap/handle_directory.h"

namespace thaw::kvsnap {

/// What two handles have in common. Names of blocks are chained: a name that both have stands for
/// the same tokens from the first on.
struct HandleComparison {
  bool same_model = false;
  bool same_layout = false;  ///< layers, shape and type of the blocks: one engine can hold both
  bool has_hashes = false;  ///< both name their blocks; else the counts of blocks mean nothing
  std::uint64_t shared_blocks = 0;
  std::uint64_t only_a_blocks = 0;
  std::uint64_t only_b_blocks = 0;
  std::uint64_t block_size = 0;  ///< tokens; 0: not known
  std::uint64_t block_bytes = 0;  ///< in all layers; 0: not known
  /// Of the prompts, where both recorded theirs.
  std::optional<std::uint64_t> shared_token_ids;
};

HandleComparison compare_handles(const HandleDirectory& a, const HandleDirectory& b);

/// One handle in a family of them; indices are those of the list that was given.
struct LineageNode {
  std::optional<std::size_t> parent;
  std::vector<std::size_t> children;  ///< oldest first
  std::uint64_t shared_with_parent = 0;  ///< blocks
};

/// Who was branched from whom.
struct Lineage {
  std::vector<LineageNode> nodes;  ///< as many as handles
  std::vector<std::size_t> roots;  ///< oldest first: without a parent among the handles
  std::uint64_t held_blocks = 0;  ///< of all handles together
  std::uint64_t distinct_blocks = 0;  ///< a block that several hold counts once
  std::uint64_t kv_bytes = 0;
};

/// Handles that name each other in a circle count as roots; of several with one id the first is the
/// parent.
Lineage trace_lineage(std::span<const HandleDirectory> handles);

/// The handles in `root`: itself where it is one, else those of its directories that are, by name.
/// Links are passed over. Errors: kNotFound, kIo.
Result<std::vector<std::string>> find_handles(FileIo& io, const std::string& root);

}  // namespace thaw::kvsnap
