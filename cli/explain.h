#pragma once

#include <string>

#include "engine/base/result.h"

namespace thaw::cli {

struct ExplainSettings {
  std::string url = "http://127.0.0.1:8000";
  std::string api_key;
  std::string request;  ///< id of one request; empty: all of the last windows
  bool json = false;
};

/// `thaw explain`: prints why the last requests of a running server shared what they did.
Result<void> run_explain(const ExplainSettings& settings);

/// The same from the server's JSON (`/v1/forks/recent`), as text for people.
Result<std::string> format_explanations(const std::string& json, const std::string& request);

}  // namespace thaw::cli
