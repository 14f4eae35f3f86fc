#pragma once

#include <chrono>
#include <string>

#include "engine/base/result.h"

namespace thaw::cli {

/// Body of GET `url` (http only, such as http://127.0.0.1:8000/v1/forks/recent), with `api_key` as
/// bearer token where it is not empty. Errors: not reachable, a status other than 200 to 299 (with
/// the body's message).
Result<std::string> http_get(const std::string& url, const std::string& api_key,
                             std::chrono::seconds timeout);

/// The same for POST with a JSON body; any status from 200 to 299 is an answer. Errors carry the
/// server's own message where it sent one as OpenAI's API does.
Result<std::string> http_post(const std::string& url, const std::string& json,
                              const std::string& api_key, std::chrono::seconds timeout);

}  // namespace thaw::cli
