#include "cli/registration.h"

#include <algorithm>
#include <filesystem>
#include <utility>

namespace thaw::cli {
namespace {

namespace fs = std::filesystem;
using coalescer::ApiError;

/// A directory of a model is flat, or nearly so: more is no model.
constexpr std::size_t kMaxEntries = 10000;

ApiError with_status(int status, const char* code, std::string message) {
  ApiError error = coalescer::invalid_field("path", std::move(message), code);
  error.status = status;
  return error;
}

ApiError outside(const std::string& path) {
  return with_status(403, "permission_denied",
                     path + " is not inside a directory that --snapshot-dir allows");
}

}  // namespace

Result<std::vector<Registration>> parse_registrations(const std::vector<std::string>& texts) {
  std::vector<Registration> registrations;
  for (const std::string& text : texts) {
    const std::size_t equals = text.find('=');
    Registration one;
    one.name = text.substr(0, equals);
    if (equals != std::string::npos) one.path = text.substr(equals + 1);
    if (one.name.empty() || one.path.empty()) {
      return make_error(
          Errc::kInvalidArgument,
          "--register is " + text + "; it must be NAME=PATH, such as small=model.gguf");
    }
    for (const Registration& other : registrations) {
      if (other.name == one.name) {
        return make_error(Errc::kInvalidArgument, "--register names two models " + one.name + ": " +
                                                      other.path + " and " + one.path);
      }
    }
    registrations.push_back(std::move(one));
  }
  return registrations;
}

Result<AllowedDirectories> AllowedDirectories::open(const std::vector<std::string>& directories) {
  AllowedDirectories allowed;
  for (const std::string& directory : directories) {
    std::error_code error;
    const fs::path root = fs::canonical(directory, error);
    if (error || !fs::is_directory(root, error)) {
      return make_error(Errc::kNotFound,
                        "--snapshot-dir is " + directory + "; it must be a directory that exists");
    }
    allowed.roots_.push_back(root.string());
  }
  return allowed;
}

bool AllowedDirectories::contains(const std::string& canonical) const {
  return std::ranges::any_of(roots_, [&](const std::string& root) {
    return canonical == root || root == "/" ||
           (canonical.starts_with(root) && canonical[root.size()] == '/');
  });
}

coalescer::ApiResult<std::string> AllowedDirectories::resolve(const std::string& path) const {
  std::vector<fs::path> candidates;
  if (fs::path(path).is_absolute())
    candidates.emplace_back(path);
  else
    for (const std::string& root : roots_)
      candidates.push_back(fs::path(root) / path);
  bool inside = false;
  for (const fs::path& candidate : candidates) {
    std::error_code error;
    std::string real = fs::weakly_canonical(candidate, error).string();
    if (error || !contains(real)) continue;
    inside = true;
    const fs::file_status status = fs::status(real, error);
    if (error || !fs::exists(status)) continue;
    if (fs::is_regular_file(status) || fs::is_directory(status)) return real;
    return with_status(400, "", path + " is neither a file nor a directory");
  }
  if (!inside) return outside(path);
  return with_status(404, "not_found", path + ": no such file or directory");
}

std::variant<std::monostate, ApiError> AllowedDirectories::check_files(
    const std::vector<std::string>& paths) const {
  std::vector<fs::path> pending(paths.begin(), paths.end());
  for (std::size_t seen = 0; !pending.empty(); ++seen) {
    const fs::path path = std::move(pending.back());
    pending.pop_back();
    std::error_code error;
    const fs::path real = fs::canonical(path, error);
    if (error || !contains(real.string())) return outside(path.string());
    const fs::file_status status = fs::status(real, error);
    if (fs::is_directory(status)) {
      for (fs::directory_iterator entry(real, error), end; !error && entry != end;
           entry.increment(error))
        pending.push_back(entry->path());
    } else if (!fs::is_regular_file(status)) {
      return with_status(400, "", path.string() + " is neither a file nor a directory");
    }
    if (seen > kMaxEntries || error)
      return with_status(400, "", paths.front() + " holds what no model does");
  }
  return std::monostate();
}

}  // namespace thaw::cli
