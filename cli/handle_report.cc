#include "cli/handle_report.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <thread>
#include <utility>

#include "cli/memory_budget.h"
#include "kvsnap/json_keys.h"

namespace thaw::cli {
namespace {

using kvsnap::HandleDirectory;
using kvsnap::or_null;
using nlohmann::ordered_json;

constexpr std::size_t kShortIdDigits = 12;
constexpr std::size_t kPreviewColumns = 200;

std::string directory_name(const HandleDirectory& directory) {
  std::error_code ignored;
  const auto whole = std::filesystem::absolute(directory.path(), ignored).lexically_normal();
  const std::string name = (whole.has_filename() ? whole : whole.parent_path()).filename().string();
  return name.empty() ? directory.path() : name;
}

std::string shape_text(const std::vector<std::uint64_t>& shape) {
  std::string text = "[";
  for (const std::uint64_t extent : shape)
    text += (text.size() > 1 ? ", " : "") + std::to_string(extent);
  return text + "]";
}

}  // namespace

std::string handle_name(const HandleDirectory& directory) {
  const auto& label = directory.handle().label;
  return label && !label->empty() ? *label : directory_name(directory);
}

std::string short_id(const std::string& id) {
  return id.substr(0, kShortIdDigits);
}

ordered_json handle_json(const HandleDirectory& directory, const std::string& checksums) {
  const kvsnap::Handle& handle = directory.handle();
  const auto& kv = directory.kv();
  std::error_code ignored;
  return {{"name", directory_name(directory)},
          {"state_dir",
           std::filesystem::absolute(directory.path(), ignored).lexically_normal().string()},
          {"handle_id", handle.handle_id},
          {"parent_id", or_null(handle.parent_id)},
          {"label", or_null(handle.label)},
          {"model_id", handle.model_id},
          {"created_at", handle.created_at},
          {"prefix_tokens", handle.prefix_tokens},
          {"num_kv_blocks", handle.num_kv_blocks},
          {"num_layers", handle.num_layers},
          {"block_shape", handle.block_shape},
          {"block_size", kv && kv->num_blocks > 0 ? ordered_json(kv->block_size) : ordered_json()},
          {"block_bytes", kv && kv->num_blocks > 0 ? ordered_json(kv->block_bytes * kv->num_layers)
                                                   : ordered_json()},
          {"dtype", kv && !kv->dtype.empty() ? ordered_json(kv->dtype) : ordered_json()},
          {"layout", kv && !kv->layout.empty() ? ordered_json(kv->layout) : ordered_json()},
          {"tensor_parallel_size", handle.tensor_parallel_size},
          {"vllm_version", or_null(handle.vllm_version)},
          {"version", 1},
          {"has_weights", handle.has_weights},
          {"kv_bytes", directory.kv_bytes()},
          {"weights_bytes", directory.weights_bytes()},
          {"checksums", checksums},
          {"files", directory.files()},
          {"prefix_preview", or_null(handle.prefix_preview)},
          {"prefix_token_ids", handle.prefix_token_ids ? ordered_json(*handle.prefix_token_ids)
                                                       : ordered_json::array()},
          {"block_hashes", kv ? ordered_json(kv->block_hashes) : ordered_json::array()}};
}

std::string format_handle(const Look& look, const HandleDirectory& directory,
                          const std::string& checksums) {
  const kvsnap::Handle& handle = directory.handle();
  const auto& kv = directory.kv();
  Table table;
  const auto row = [&](const char* label, const std::string& value) {
    table.add({styled(look, Style::kDim, label), value});
  };
  row("model", printable(look, handle.model_id));
  if (!handle.handle_id.empty()) row("id", styled(look, Style::kId, handle.handle_id));
  if (handle.parent_id) row("parent", styled(look, Style::kId, *handle.parent_id));
  row("created", utc_time(handle.created_at));
  if (handle.num_kv_blocks == 0) {
    row("prefix", "empty: no blocks were cached");
  } else {
    std::string prefix =
        counted(handle.prefix_tokens, "token") + " in " + counted(handle.num_kv_blocks, "block");
    if (kv) prefix += " of " + std::to_string(kv->block_size);
    row("prefix", prefix);
    std::string held = directory.kv_bytes() > 0 ? format_bytes(directory.kv_bytes()) + " here"
                                                : "not here, only their description";
    held += ", " + counted(handle.num_layers, "layer");
    if (kv && !kv->dtype.empty()) held += ", " + printable(look, kv->dtype);
    if (kv && !kv->layout.empty()) held += ", " + printable(look, kv->layout);
    row("kv cache", held);
    if (!handle.block_shape.empty()) row("block shape", shape_text(handle.block_shape));
  }
  row("weights", directory.weights_bytes() > 0 ? format_bytes(directory.weights_bytes()) + " here"
                 : handle.has_weights          ? "not here, though it was saved with them"
                                               : "not included");
  row("ranks", std::to_string(handle.tensor_parallel_size));
  if (handle.vllm_version) row("engine", "vllm " + printable(look, *handle.vllm_version));
  if (handle.prefix_token_ids)
    row("prompt", counted(handle.prefix_token_ids->size(), "token id") + " recorded");
  row("checksums", checksums == "none" ? "none, as in every file of version 1" : checksums);
  row("path", printable(look, directory.path()));
  if (handle.prefix_preview)
    row("preview", "\"" + clipped(look, *handle.prefix_preview, kPreviewColumns) + "\"");
  return "session " + styled(look, Style::kBold, printable(look, handle_name(directory))) + "\n" +
         table.render("  ");
}

void print_json(const ordered_json& value) {
  const std::string text = value.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
  std::fputs(text.c_str(), stdout);
}

Result<void> run_inspect(const InspectSettings& settings) {
  const auto directory =
      HandleDirectory::open(kvsnap::system_io(kvsnap::IoMode::kNoLinks), settings.handle);
  if (!directory) return directory.error();
  std::string checksums = "not compared";
  if (settings.verify) {
    ThreadPool threads(static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 16U)));
    const auto verified = directory->verify(threads);
    if (!verified) return verified.error();
    checksums = *verified ? "right" : "none";
  }
  if (settings.json) {
    print_json(handle_json(*directory, checksums));
  } else {
    std::fputs(format_handle(look_of_stdout(), *directory, checksums).c_str(), stdout);
  }
  return {};
}

}  // namespace thaw::cli
