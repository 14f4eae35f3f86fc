#include "kvsnap/handle.h"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "kvsnap/handle_directory.h"
#include "kvsnap/json_keys.h"

namespace thaw::kvsnap {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::uint64_t kHandleVersion = 1;
constexpr std::size_t kMaxIdBytes = 128;
constexpr std::uint32_t kMaxRanks = 1024;

/// Names end up in trees and file listings.
void check_id(const char* key, const std::string& id, JsonKeys& keys) {
  if (id.size() > kMaxIdBytes ||
      !std::ranges::all_of(id, [](char c) { return c > ' ' && c < 127; }))
    keys.fail(std::string(key) + " is no identifier of up to " + std::to_string(kMaxIdBytes) +
              " characters");
}

}  // namespace

Result<std::string> Handle::to_json() const {
  ordered_json out = {{"model_id", model_id},
                      {"state_dir", "."},
                      {"kv_path", kKvFile},
                      {"weights_path", has_weights ? ordered_json(kWeightsFile) : ordered_json()},
                      {"prefix_tokens", prefix_tokens},
                      {"block_shape", block_shape},
                      {"num_layers", num_layers},
                      {"max_block_id", max_block_id},
                      {"num_kv_blocks", num_kv_blocks},
                      {"handle_id", handle_id},
                      {"parent_id", or_null(parent_id)},
                      {"label", or_null(label)},
                      {"prefix_token_ids", or_null(prefix_token_ids)},
                      {"prefix_preview", or_null(prefix_preview)},
                      {"tensor_parallel_size", tensor_parallel_size},
                      {"vllm_version", or_null(vllm_version)},
                      {"created_at", created_at},
                      {"version", kHandleVersion}};
  try {
    return out.dump(2) + "\n";
  } catch (const json::exception&) {
    return make_error(Errc::kInvalidArgument,
                      "a label, name or text of the handle is not UTF-8, which JSON must be");
  }
}

Result<Handle> Handle::parse(std::string_view text) {
  const json parsed = json::parse(text, nullptr, false);
  JsonKeys keys(parsed, kHandleFile);
  std::uint64_t version = 0;
  keys.read("version", version);
  if (auto read = keys.result(); !read) return std::move(read).error();
  if (version != kHandleVersion) {
    return make_error(Errc::kUnsupported, std::string(kHandleFile) + ": version " +
                                              std::to_string(version) + "; supported is 1");
  }
  Handle handle;
  keys.read("model_id", handle.model_id);
  keys.read("prefix_tokens", handle.prefix_tokens);
  keys.read_or("block_shape", handle.block_shape);
  keys.read("num_layers", handle.num_layers);
  keys.read("max_block_id", handle.max_block_id);
  keys.read("num_kv_blocks", handle.num_kv_blocks);
  keys.read_or("handle_id", handle.handle_id);
  keys.read("parent_id", handle.parent_id);
  keys.read("label", handle.label);
  keys.read("prefix_token_ids", handle.prefix_token_ids);
  keys.read("prefix_preview", handle.prefix_preview);
  keys.read_or("tensor_parallel_size", handle.tensor_parallel_size);
  keys.read("vllm_version", handle.vllm_version);
  keys.read_or("created_at", handle.created_at);
  std::optional<std::string> weights_path;
  keys.read("weights_path", weights_path);
  handle.has_weights = weights_path && !weights_path->empty();
  check_id("handle_id", handle.handle_id, keys);
  if (handle.parent_id) check_id("parent_id", *handle.parent_id, keys);
  if (handle.tensor_parallel_size < 1 || handle.tensor_parallel_size > kMaxRanks) {
    keys.fail("tensor_parallel_size is " + std::to_string(handle.tensor_parallel_size) +
              ", which cannot be");
  }
  if (handle.prefix_token_ids &&
      !std::ranges::all_of(*handle.prefix_token_ids, [](TokenId id) { return id >= 0; })) {
    keys.fail("prefix_token_ids has an id below 0");
  }
  if (handle.created_at < 0) keys.fail("created_at is before 1970");
  if (auto read = keys.result(); !read) return std::move(read).error();
  return handle;
}

Result<std::string> new_handle_id() {
  Hash128 id;
  if (::getrandom(id.bytes.data(), id.bytes.size(), 0) != static_cast<ssize_t>(id.bytes.size()))
    return io_error("cannot get random bytes for an id", errno);
  return id.to_hex();
}

}  // namespace thaw::kvsnap
