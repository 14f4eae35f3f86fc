#include "cli/tree_lines.h"

#include <utility>

namespace thaw::cli {

std::vector<TreeLine> tree_lines(const Look& look, std::span<const TreeNode> nodes,
                                 std::span<const std::size_t> roots) {
  // Deeper than this a tree is drawn as if it went on at this depth, so that lines stay short.
  constexpr std::size_t kDeepest = 30;
  const std::string fork = look.unicode ? "\xE2\x94\x9C\xE2\x94\x80 " : "|- ";
  const std::string last = look.unicode ? "\xE2\x94\x94\xE2\x94\x80 " : "`- ";
  const std::string pass = look.unicode ? "\xE2\x94\x82  " : "|  ";
  struct Waiting {
    std::size_t node;
    std::string own;  // before this node
    std::string below;  // before its children's own
    std::size_t depth;
  };
  std::vector<TreeLine> lines;
  std::vector<Waiting> stack;
  for (auto root = roots.rbegin(); root != roots.rend(); ++root)
    stack.push_back({*root, "", "", 0});
  while (!stack.empty()) {
    const Waiting at = std::move(stack.back());
    stack.pop_back();
    lines.push_back({at.node, at.own});
    const auto& children = nodes[at.node].children;
    for (std::size_t i = children.size(); i > 0; --i) {
      const bool is_last = i == children.size();
      const bool is_deep = at.depth >= kDeepest;
      stack.push_back({children[i - 1], at.below + (is_last ? last : fork),
                       is_deep ? at.below : at.below + (is_last ? "   " : pass), at.depth + 1});
    }
  }
  return lines;
}

}  // namespace thaw::cli
