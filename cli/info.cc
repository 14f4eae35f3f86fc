#include "cli/info.h"

#include <cstdio>

#include "cli/container_report.h"
#include "cli/model_report.h"

namespace thaw::cli {

Result<void> run_info(const InfoSettings& settings, const ModelPaths& paths) {
  const bool is_file = is_container(settings.model);
  if (settings.verify && !is_file) {
    return make_error(Errc::kInvalidArgument,
                      settings.model +
                          ": --verify compares the checksums of .thaw and .thawkv "
                          "files; this is none");
  }
  const auto report = is_file ? report_container(settings.model, settings.verify)
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
