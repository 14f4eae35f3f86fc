#include "kvsnap/handle_lineage.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <numeric>
#include <set>
#include <string_view>
#include <tuple>

namespace thaw::kvsnap {
namespace {

using Hashes = std::set<std::string_view>;

Hashes hashes_of(const HandleDirectory& directory) {
  Hashes hashes;
  if (const auto& kv = directory.kv())
    for (const std::string& hash : kv->block_hashes)
      if (!hash.empty()) hashes.insert(hash);
  return hashes;
}

std::uint64_t count_common(const Hashes& a, const Hashes& b) {
  return static_cast<std::uint64_t>(
      std::ranges::count_if(a, [&](std::string_view hash) { return b.contains(hash); }));
}

/// Blocks of different models or types are different blocks, whatever their tokens.
bool one_engine_holds_both(const HandleDirectory& a, const HandleDirectory& b) {
  const auto key = [](const HandleDirectory& directory) {
    const auto& kv = directory.kv();
    return std::tuple(directory.handle().num_layers, directory.handle().block_shape,
                      kv ? std::string_view(kv->dtype) : std::string_view(),
                      directory.handle().tensor_parallel_size);
  };
  return key(a) == key(b);
}

bool may_share(const HandleDirectory& a, const HandleDirectory& b) {
  return a.handle().model_id == b.handle().model_id && one_engine_holds_both(a, b);
}

}  // namespace

HandleComparison compare_handles(const HandleDirectory& a, const HandleDirectory& b) {
  HandleComparison found;
  found.same_model = a.handle().model_id == b.handle().model_id;
  found.same_layout = one_engine_holds_both(a, b);
  const Hashes of_a = hashes_of(a);
  const Hashes of_b = hashes_of(b);
  found.has_hashes = !of_a.empty() && !of_b.empty();
  found.shared_blocks = count_common(of_a, of_b);
  found.only_a_blocks = of_a.size() - found.shared_blocks;
  found.only_b_blocks = of_b.size() - found.shared_blocks;
  for (const HandleDirectory* one : {&a, &b}) {
    const auto& kv = one->kv();
    if (found.block_size != 0 || !kv) continue;
    found.block_size = kv->block_size;
    found.block_bytes = kv->block_bytes * kv->num_layers;
  }
  const auto& ids_a = a.handle().prefix_token_ids;
  const auto& ids_b = b.handle().prefix_token_ids;
  if (ids_a && ids_b) {
    const auto end = std::ranges::mismatch(*ids_a, *ids_b).in1;
    found.shared_token_ids = static_cast<std::uint64_t>(end - ids_a->begin());
  }
  return found;
}

Lineage trace_lineage(std::span<const HandleDirectory> handles) {
  Lineage lineage;
  lineage.nodes.resize(handles.size());
  std::map<std::string_view, std::size_t> by_id;
  for (std::size_t i = 0; i < handles.size(); ++i)
    if (!handles[i].handle().handle_id.empty()) by_id.emplace(handles[i].handle().handle_id, i);

  // A parent is taken where following it never comes back: nodes are linked one after another, and
  // only those before hang together.
  const auto leads_to = [&](std::size_t from, std::size_t to) {
    for (std::optional<std::size_t> at = from; at; at = lineage.nodes[*at].parent)
      if (*at == to) return true;
    return false;
  };
  std::vector<std::size_t> order(handles.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::ranges::sort(order, [&](std::size_t a, std::size_t b) {
    const double of_a = handles[a].handle().created_at;
    const double of_b = handles[b].handle().created_at;
    return of_a == of_b ? a < b : of_a < of_b;
  });
  std::vector<Hashes> hashes;
  for (const HandleDirectory& directory : handles)
    hashes.push_back(hashes_of(directory));
  for (const std::size_t i : order) {
    const auto& parent_id = handles[i].handle().parent_id;
    const auto parent = parent_id ? by_id.find(*parent_id) : by_id.end();
    if (parent == by_id.end() || leads_to(parent->second, i)) {
      lineage.roots.push_back(i);
      continue;
    }
    lineage.nodes[i].parent = parent->second;
    lineage.nodes[parent->second].children.push_back(i);
    if (may_share(handles[i], handles[parent->second]))
      lineage.nodes[i].shared_with_parent = count_common(hashes[i], hashes[parent->second]);
  }

  // Names of blocks say nothing of the model.
  using Place = std::tuple<std::string_view, std::string_view, std::string_view>;
  std::set<Place> distinct;
  for (std::size_t i = 0; i < handles.size(); ++i) {
    lineage.kv_bytes += handles[i].kv_bytes();
    lineage.held_blocks += handles[i].handle().num_kv_blocks;
    const auto& kv = handles[i].kv();
    if (!kv) {
      // What has no name is nobody else's.
      lineage.distinct_blocks += handles[i].handle().num_kv_blocks;
      continue;
    }
    for (const std::string_view hash : hashes[i])
      distinct.emplace(handles[i].handle().model_id, kv->dtype, hash);
    lineage.distinct_blocks +=
        static_cast<std::uint64_t>(std::ranges::count(kv->block_hashes, std::string()));
  }
  lineage.distinct_blocks += distinct.size();
  return lineage;
}

Result<std::vector<std::string>> find_handles(FileIo& io, const std::string& root) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (!fs::exists(root, error)) {
    return error ? Result<std::vector<std::string>>(
                       io_error("cannot look for " + root, error.value()))
                 : make_error(Errc::kNotFound, root + ": no such directory");
  }
  if (!fs::is_directory(root, error) || has_handle(io, root)) return std::vector{root};
  std::vector<std::string> found;
  for (fs::directory_iterator entry(root, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code ignored;
    if (entry->is_symlink(ignored) || !entry->is_directory(ignored)) continue;
    if (has_handle(io, entry->path().string())) found.push_back(entry->path().string());
  }
  if (error) return io_error("cannot read the directory " + root, error.value());
  std::ranges::sort(found);
  return found;
}

}  // namespace thaw::kvsnap
