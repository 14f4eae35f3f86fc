#pragma once

#include <string>
#include <variant>
#include <vector>

#include "coalescer/openai/api_error.h"
#include "engine/base/result.h"

namespace thaw::cli {

/// A model beside the first one: NAME=PATH.
struct Registration {
  std::string name;
  std::string path;
};

/// Errors: no '=', an empty name or path, a name given twice.
Result<std::vector<Registration>> parse_registrations(const std::vector<std::string>& texts);

/// The directories that models may be registered from while the server runs.
class AllowedDirectories {
 public:
  /// Errors: one that is no directory.
  static Result<AllowedDirectories> open(const std::vector<std::string>& directories);

  bool empty() const { return roots_.empty(); }

  /// What `path` leads to, every symbolic link followed: a file or directory inside one of the
  /// directories. A relative path is looked for in each of them. Errors, as HTTP answers them: 403
  /// where it leads outside, be there something or not; 404 where there is nothing; 400 for what is
  /// neither file nor directory.
  coalescer::ApiResult<std::string> resolve(const std::string& path) const;

  /// Nothing, or the 403 that names the first file, or file of a directory, that lies or leads
  /// outside.
  std::variant<std::monostate, coalescer::ApiError> check_files(
      const std::vector<std::string>& paths) const;

 private:
  bool contains(const std::string& canonical) const;

  std::vector<std::string> roots_;  // canonical
};

}  // namespace thaw::cli
