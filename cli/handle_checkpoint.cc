#include "cli/handle_checkpoint.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <utility>
#include <vector>

#include "cli/handle_report.h"
#include "kvsnap/container_reader.h"
#include "kvsnap/handle_directory.h"
#include "kvsnap/json_keys.h"
#include "kvsnap/whole_file.h"

namespace thaw::cli {
namespace {

using kvsnap::HandleDirectory;
using nlohmann::json;

constexpr std::size_t kMaxMetadataBytes = std::size_t{128} << 20;

/// What our own files of KV say (kvsnap/FORMAT.md); others say nothing.
Result<void> take_metadata(const kvsnap::ContainerReader& reader, ThreadPool& threads,
                           kvsnap::Handle& handle) {
  const kvsnap::Region* region = reader.find(kvsnap::RegionKind::kMetadata, 0);
  if (region == nullptr) return {};
  const auto text = reader.read_text(*region, kMaxMetadataBytes, threads);
  if (!text) return text.error();
  const json document = json::parse(*text, nullptr, false);
  kvsnap::JsonKeys keys(document, reader.path() + ": metadata");
  std::string content;
  keys.read_or("content", content);
  if (keys.result() && content != "kv") {
    return make_error(
        Errc::kUnsupported,
        reader.path() + " holds " + (content.empty() ? "something else" : content) + ", not KV");
  }
  keys.read_or("model", handle.model_id);
  keys.read("token_ids", handle.prefix_token_ids);
  keys.read_or("tensor_parallel_size", handle.tensor_parallel_size);
  if (handle.tensor_parallel_size != 1)
    keys.fail("it is one of several ranks; only whole KV becomes a handle");
  return keys.result();
}

}  // namespace

Result<void> run_make_handle(const MakeHandleSettings& settings) {
  kvsnap::FileIo& io = kvsnap::system_io(kvsnap::IoMode::kBuffered);
  const auto reader = kvsnap::ContainerReader::open(io, settings.kv);
  if (!reader) return reader.error();
  const std::string description_path = settings.kv + kvsnap::kKvDescriptionSuffix;
  const auto description =
      kvsnap::read_whole_file(io, description_path, kvsnap::kMaxKvDescriptionBytes);
  if (!description) return description.error();
  const auto kv = kvsnap::KvDescription::decode(*description);
  if (!kv) {
    return make_error(kv.error().code, description_path + ": " + kv.error().message);
  }
  ThreadPool threads(static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 16U)));
  if (auto verified = reader->verify(threads); !verified) return verified;

  kvsnap::Handle handle;
  if (auto taken = take_metadata(*reader, threads, handle); !taken) return taken;
  if (!settings.model.empty()) handle.model_id = settings.model;
  if (handle.model_id.empty()) {
    return make_error(Errc::kInvalidArgument,
                      settings.kv + " does not say which model's KV it is; --model says it");
  }
  handle.num_kv_blocks = kv->num_blocks;
  handle.prefix_tokens = kv->num_blocks * kv->block_size;
  handle.block_shape = kv->block_shape;
  handle.num_layers = kv->num_layers;
  if (kv->num_blocks > 0)
    handle.max_block_id = static_cast<std::int64_t>(*std::ranges::max_element(kv->block_ids));
  auto id = kvsnap::new_handle_id();
  if (!id) return std::move(id).error();
  handle.handle_id = *std::move(id);
  handle.label = settings.label;
  if (!settings.parent.empty()) {
    const auto parent =
        HandleDirectory::open(kvsnap::system_io(kvsnap::IoMode::kNoLinks), settings.parent);
    if (!parent) return parent.error();
    if (!parent->handle().handle_id.empty()) handle.parent_id = parent->handle().handle_id;
  }
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  handle.created_at = now.count();

  if (auto made = kvsnap::make_handle_directory(settings.target); !made) return made;
  const std::string description_name = std::string(kvsnap::kKvFile) + kvsnap::kKvDescriptionSuffix;
  if (auto written = kvsnap::write_handle(
          io, settings.target, handle,
          {{settings.kv, kvsnap::kKvFile}, {description_path, description_name}});
      !written) {
    return written;
  }
  const auto written =
      HandleDirectory::open(kvsnap::system_io(kvsnap::IoMode::kNoLinks), settings.target);
  if (!written) return written.error();
  if (settings.json) {
    print_json(handle_json(*written, reader->has_checksums() ? "right" : "none"));
    return {};
  }
  const Look look = look_of_stdout();
  std::printf("[thaw] checkpoint %s in %s: %s, %s in %s\n",
              printable(look, handle_name(*written)).c_str(),
              printable(look, settings.target).c_str(), handle.handle_id.c_str(),
              counted(handle.prefix_tokens, "token").c_str(),
              counted(handle.num_kv_blocks, "block").c_str());
  return {};
}

}  // namespace thaw::cli
