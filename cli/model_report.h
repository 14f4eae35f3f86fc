#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "cli/model_paths.h"
#include "engine/base/result.h"

namespace thaw::cli {

/// Everything that can be said of a model without computing with it, as `thaw info --json` prints
/// it (docs/models.md). What is not supported is listed under "problems", and the rest goes on; an
/// error only where there is no model or its files cannot be read at all.
Result<nlohmann::ordered_json> report_model(const std::string& model, const ModelPaths& paths);

/// A value of a report, for people: texts without their quotes.
inline std::string shown(const nlohmann::ordered_json& value) {
  return value.is_string() ? value.get<std::string>() : value.dump();
}

/// The same as lines for people.
std::string format_report(const nlohmann::ordered_json& report);

}  // namespace thaw::cli
