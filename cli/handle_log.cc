#include "cli/handle_log.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <set>
#include <utility>

#include "cli/handle_report.h"
#include "cli/memory_budget.h"
#include "cli/tree_lines.h"

namespace thaw::cli {
namespace {

using kvsnap::HandleDirectory;
using nlohmann::ordered_json;

std::string model_name(const std::string& model) {
  const std::size_t slash = model.rfind('/');
  return slash == std::string::npos ? model : model.substr(slash + 1);
}

std::string shared_text(const kvsnap::LineageNode& node, const HandleDirectory& directory) {
  if (!node.parent) return "";
  const std::uint64_t blocks = directory.handle().num_kv_blocks;
  if (blocks == 0) return "no blocks";
  const std::uint64_t shared = std::min(node.shared_with_parent, blocks);
  return "shares " + grouped(shared) + ", +" + grouped(blocks - shared);
}

}  // namespace

ordered_json log_json(const HandleFamily& family) {
  const kvsnap::Lineage lineage = kvsnap::trace_lineage(family.handles);
  ordered_json out = {{"root", family.root},
                      {"handles", ordered_json::array()},
                      {"held_blocks", lineage.held_blocks},
                      {"distinct_blocks", lineage.distinct_blocks},
                      {"kv_bytes", lineage.kv_bytes},
                      {"unread", ordered_json::array()}};
  for (std::size_t i = 0; i < family.handles.size(); ++i) {
    const HandleDirectory& directory = family.handles[i];
    const kvsnap::Handle& handle = directory.handle();
    const kvsnap::LineageNode& node = lineage.nodes[i];
    ordered_json children = ordered_json::array();
    for (const std::size_t child : node.children)
      children.push_back(family.handles[child].path());
    out["handles"].push_back(
        {{"name", handle_name(directory)},
         {"path", directory.path()},
         {"handle_id", handle.handle_id},
         {"parent_id", handle.parent_id ? ordered_json(*handle.parent_id) : ordered_json()},
         {"parent",
          node.parent ? ordered_json(family.handles[*node.parent].path()) : ordered_json(nullptr)},
         {"children", std::move(children)},
         {"model_id", handle.model_id},
         {"created_at", handle.created_at},
         {"prefix_tokens", handle.prefix_tokens},
         {"num_kv_blocks", handle.num_kv_blocks},
         {"shared_with_parent",
          node.parent ? ordered_json(node.shared_with_parent) : ordered_json(nullptr)},
         {"kv_bytes", directory.kv_bytes()},
         {"weights_bytes", directory.weights_bytes()}});
  }
  for (const HandleFamily::Unread& unread : family.unread)
    out["unread"].push_back({{"path", unread.path}, {"reason", unread.reason}});
  return out;
}

std::string format_log(const Look& look, const HandleFamily& family, double now) {
  const kvsnap::Lineage lineage = kvsnap::trace_lineage(family.handles);
  std::set<std::string> models;
  for (const HandleDirectory& directory : family.handles)
    models.insert(directory.handle().model_id);
  std::string out = styled(look, Style::kBold, printable(look, family.root)) + "  " +
                    counted(family.handles.size(), "session");
  if (models.size() == 1) out += ", " + printable(look, model_name(*models.begin()));
  if (lineage.held_blocks > 0) {
    out += ", " + counted(lineage.distinct_blocks, "distinct block") + " of " +
           grouped(lineage.held_blocks) + " held";
  }
  if (lineage.kv_bytes > 0) out += ", " + format_bytes(lineage.kv_bytes);
  out += "\n\n";

  std::vector<TreeNode> nodes(family.handles.size());
  for (std::size_t i = 0; i < nodes.size(); ++i)
    nodes[i].children = lineage.nodes[i].children;
  Table table({2, 3, 4});
  for (const TreeLine& line : tree_lines(look, nodes, lineage.roots)) {
    const HandleDirectory& directory = family.handles[line.node];
    const kvsnap::Handle& handle = directory.handle();
    std::vector<std::string> row = {
        styled(look, Style::kDim, line.prefix) +
            styled(look, Style::kBold, clipped(look, handle_name(directory), 40)),
        styled(look, Style::kId, handle.handle_id.empty() ? "-" : short_id(handle.handle_id)),
        grouped(handle.prefix_tokens) + " tok",
        grouped(handle.num_kv_blocks) + " blk",
        directory.kv_bytes() > 0 ? format_bytes(directory.kv_bytes()) : "no KV here",
        styled(look, Style::kShared, shared_text(lineage.nodes[line.node], directory)),
        styled(look, Style::kDim, age(handle.created_at, now))};
    if (models.size() > 1) row.push_back(printable(look, model_name(handle.model_id)));
    table.add(std::move(row));
  }
  out += table.render();
  for (const HandleFamily::Unread& unread : family.unread)
    out += "not read: " + printable(look, unread.reason) + "\n";
  return out;
}

Result<void> run_log(const LogSettings& settings) {
  kvsnap::FileIo& io = kvsnap::system_io(kvsnap::IoMode::kNoLinks);
  const auto found = kvsnap::find_handles(io, settings.root);
  if (!found) return found.error();
  HandleFamily family{settings.root, {}, {}};
  for (const std::string& path : *found) {
    auto opened = HandleDirectory::open(io, path);
    if (opened) {
      family.handles.push_back(*std::move(opened));
    } else if (path == settings.root) {
      return std::move(opened).error();
    } else {
      family.unread.push_back({path, opened.error().message});
    }
  }
  if (settings.json) {
    print_json(log_json(family));
    return {};
  }
  if (family.handles.empty() && family.unread.empty()) {
    std::printf("no handles in %s\n", settings.root.c_str());
    return {};
  }
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  std::fputs(format_log(look_of_stdout(), family, now.count()).c_str(), stdout);
  return {};
}

}  // namespace thaw::cli
