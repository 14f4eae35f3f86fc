#pragma once

#include <memory>
#include <string>

#include <spdlog/spdlog.h>

namespace thaw {

/// The logger of one module ("pool", "http", ...), made on first use; writes key=value lines to
/// stderr. Levels: info for lifecycle, debug per request. Thread-safe.
std::shared_ptr<spdlog::logger> logger(const std::string& module);

/// Level of all loggers, present and future: trace, debug, info, warn, error or off.
/// False where `level` is none of these.
bool set_log_level(const std::string& level);

/// Text put before every line of this process, such as "worker=0". Call before the first log line.
void set_log_prefix(const std::string& prefix);

}  // namespace thaw
