#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "cli/terminal.h"

namespace thaw::cli {

struct TreeNode {
  std::vector<std::size_t> children;  ///< indices of nodes, each below one node at most
};

/// A line of a drawn tree: what stands before the name of a node.
struct TreeLine {
  std::size_t node = 0;
  std::string prefix;  ///< "│  ├─ ", or "|  |- " where there is no Unicode
};

/// The lines of the trees below `roots`, from top to bottom. However deep: no recursion.
std::vector<TreeLine> tree_lines(const Look& look, std::span<const TreeNode> nodes,
                                 std::span<const std::size_t> roots);

}  // namespace thaw::cli
