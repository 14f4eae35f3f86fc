#include "cli/info.h"

#include <cstdio>

#include "cli/model_report.h"

namespace thaw::cli {

Result<void> run_info(const InfoSettings& settings, const ModelPaths& paths) {
  const auto report = report_model(settings.model, paths);
  if (!report) return report.error();
  const std::string text =
      settings.json
          ? report->dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n"
          : format_report(*report);
  std::fputs(text.c_str(), stdout);
  return {};
}

}  // namespace thaw::cli
