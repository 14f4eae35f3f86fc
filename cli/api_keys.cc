#include "cli/api_keys.h"

#include <cerrno>
#include <fstream>

#include "engine/base/call_limits.h"
#include "engine/base/hash.h"

namespace thaw::cli {
namespace {

Result<coalescer::ApiKey> parse_key(const std::string& text) {
  const std::size_t colon = text.find(':');
  coalescer::ApiKey parsed;
  parsed.key = colon == std::string::npos ? text : text.substr(colon + 1);
  if (parsed.key.empty()) return make_error(Errc::kInvalidArgument, "an API key is empty");
  parsed.tenant = colon == std::string::npos ? "key-" + hash_text(parsed.key).to_hex().substr(0, 12)
                                             : text.substr(0, colon);
  if (parsed.tenant.empty()) {
    return make_error(Errc::kInvalidArgument, "an API key has an empty tenant name before ':'");
  }
  if (parsed.tenant.size() > kMaxCallNameBytes) {
    return make_error(Errc::kInvalidArgument,
                      "an API key's tenant name has " + std::to_string(parsed.tenant.size()) +
                          " bytes; at most " + std::to_string(kMaxCallNameBytes) + " are right");
  }
  return parsed;
}

}  // namespace

Result<std::vector<coalescer::ApiKey>> load_api_keys(const std::vector<std::string>& flags,
                                                     const std::string& file) {
  std::vector<std::string> lines = flags;
  if (!file.empty()) {
    std::ifstream stream(file);
    if (!stream) return io_error("cannot open API key file " + file, errno);
    for (std::string line; std::getline(stream, line);) {
      const std::size_t end = line.find_last_not_of(" \t\r");
      line.resize(end == std::string::npos ? 0 : end + 1);
      if (!line.empty() && line.front() != '#') lines.push_back(line);
    }
  }
  std::vector<coalescer::ApiKey> keys;
  for (const std::string& line : lines) {
    auto parsed = parse_key(line);
    if (!parsed) return parsed.error();
    for (const coalescer::ApiKey& known : keys) {
      if (known.key == parsed->key && known.tenant != parsed->tenant) {
        return make_error(Errc::kInvalidArgument, "one API key is given for two tenants, " +
                                                      known.tenant + " and " + parsed->tenant);
      }
    }
    keys.push_back(std::move(*parsed));
  }
  return keys;
}

}  // namespace thaw::cli
