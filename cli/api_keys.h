#pragma once

#include <string>
#include <vector>

#include "coalescer/http/server.h"
#include "engine/base/result.h"

namespace thaw::cli {

/// Keys from flags and from a file (may be empty), each KEY or TENANT:KEY; without a name the
/// tenant is a hash of the key. In the file, blank lines and lines that start with # are skipped.
/// Errors: file not readable, an empty key, a key given twice for different tenants.
Result<std::vector<coalescer::ApiKey>> load_api_keys(const std::vector<std::string>& flags,
                                                     const std::string& file);

}  // namespace thaw::cli
