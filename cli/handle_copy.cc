#include "cli/handle_copy.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <utility>

#include "cli/handle_report.h"
#include "cli/memory_budget.h"
#include "kvsnap/handle_directory.h"

namespace thaw::cli {
namespace {

using kvsnap::HandleDirectory;

double now_seconds() {
  const std::chrono::duration<double> now = std::chrono::system_clock::now().time_since_epoch();
  return now.count();
}

/// Copies under another handle.json and tells of it. What is damaged is not copied on.
Result<void> copy(const CopySettings& settings, const HandleDirectory& source,
                  const kvsnap::Handle& handle, const char* verb) {
  std::string checksums = "not compared";
  if (settings.verify && !settings.description_only) {
    ThreadPool threads(static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, 16U)));
    const auto verified = source.verify(threads);
    if (!verified) return verified.error();
    checksums = *verified ? "right" : "none";
  }
  if (auto made = kvsnap::make_handle_directory(settings.target); !made) return made;
  if (auto saved = source.save(settings.target, handle, !settings.description_only); !saved)
    return saved;
  const auto written =
      HandleDirectory::open(kvsnap::system_io(kvsnap::IoMode::kNoLinks), settings.target);
  if (!written) return written.error();
  if (settings.json) {
    print_json(handle_json(*written, checksums));
    return {};
  }
  const Look look = look_of_stdout();
  const std::string held = written->kv_bytes() + written->weights_bytes() > 0
                               ? format_bytes(written->kv_bytes() + written->weights_bytes())
                               : "its description only";
  std::printf("[thaw] %s %s to %s: %s, %s in %s, %s\n", verb,
              printable(look, handle_name(source)).c_str(),
              printable(look, settings.target).c_str(),
              handle.handle_id.empty() ? "no id" : handle.handle_id.c_str(),
              counted(handle.prefix_tokens, "token").c_str(),
              counted(handle.num_kv_blocks, "block").c_str(), held.c_str());
  return {};
}

}  // namespace

Result<void> run_branch(const CopySettings& settings) {
  const auto source =
      HandleDirectory::open(kvsnap::system_io(kvsnap::IoMode::kNoLinks), settings.handle);
  if (!source) return source.error();
  kvsnap::Handle child = source->handle();
  auto id = kvsnap::new_handle_id();
  if (!id) return std::move(id).error();
  child.parent_id = child.handle_id.empty() ? std::nullopt : std::optional(child.handle_id);
  child.handle_id = *std::move(id);
  child.label = settings.label;
  child.created_at = now_seconds();
  return copy(settings, *source, child, "branched");
}

Result<void> run_checkout(const CopySettings& settings) {
  const auto source =
      HandleDirectory::open(kvsnap::system_io(kvsnap::IoMode::kNoLinks), settings.handle);
  if (!source) return source.error();
  kvsnap::Handle handle = source->handle();
  if (settings.label) handle.label = settings.label;
  return copy(settings, *source, handle, "checked out");
}

}  // namespace thaw::cli
