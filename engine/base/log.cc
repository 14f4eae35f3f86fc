#include "engine/base/log.h"

#include <mutex>

#include <spdlog/sinks/stdout_color_sinks.h>

namespace thaw {
namespace {

std::mutex g_mutex;
std::string g_prefix;  // guarded by g_mutex

std::string pattern() {
  return "%Y-%m-%dT%H:%M:%S.%eZ %^%l%$ %n " + (g_prefix.empty() ? "" : g_prefix + " ") + "%v";
}

}  // namespace

std::shared_ptr<spdlog::logger> logger(const std::string& module) {
  const std::scoped_lock lock(g_mutex);
  if (auto existing = spdlog::get(module)) return existing;
  auto created = spdlog::stderr_color_mt(module);
  created->set_pattern(pattern(), spdlog::pattern_time_type::utc);
  return created;
}

bool set_log_level(const std::string& level) {
  static const std::string levels[] = {"trace", "debug", "info", "warn", "error", "off"};
  for (const std::string& known : levels) {
    if (known != level) continue;
    spdlog::set_level(spdlog::level::from_str(level));
    return true;
  }
  return false;
}

void set_log_prefix(const std::string& prefix) {
  const std::scoped_lock lock(g_mutex);
  g_prefix = prefix;
  spdlog::apply_all([](const std::shared_ptr<spdlog::logger>& existing) {
    existing->set_pattern(pattern(), spdlog::pattern_time_type::utc);
  });
}

}  // namespace thaw
