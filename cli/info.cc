#include "cli/info.h"

#include <algorithm>
#include <cstdio>
#include <thread>

#include "cli/container_report.h"
#include "cli/model_report.h"
#include "cli/remote_files.h"

namespace thaw::cli {
namespace {

constexpr int kRemoteReads = 16;  ///< at once: each waits for a network

}  // namespace

Result<void> run_info(const InfoSettings& settings, const ModelPaths& paths) {
  std::unique_ptr<RemoteFiles> remote;
  if (is_remote(settings.model)) {
    auto opened = RemoteFiles::open(settings.s3, paths.snapshots);
    if (!opened) return std::move(opened).error();
    remote = *std::move(opened);
  }
  const bool is_file = remote || is_container(settings.model);
  if (settings.verify && !is_file) {
    return make_error(Errc::kInvalidArgument,
                      settings.model +
                          ": --verify compares the checksums of .thaw and .thawkv "
                          "files; this is none");
  }
  kvsnap::FileIo& io = remote ? remote->io() : kvsnap::system_io(kvsnap::IoMode::kBuffered);
  const int num_threads = remote ? std::min(kRemoteReads, static_cast<int>(settings.s3.concurrency))
                                 : static_cast<int>(std::thread::hardware_concurrency());
  const auto report = is_file ? report_container(io, settings.model, settings.verify, num_threads)
                              : report_model(settings.model, paths);
  if (!report) return report.error();
  const std::string text =
      settings.json
          ? report->dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"
      : is_file ? format_container_report(*report)
                : format_report(*report);
  std::fputs(text.c_str(), stdout);
  return {};
}

}  // namespace thaw::cli
