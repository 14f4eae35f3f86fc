#pragma once

#include <optional>
#include <string>

#include "engine/base/result.h"

namespace thaw::cli {

struct MakeHandleSettings {
  std::string kv;  ///< a .thawkv file with its description beside it
  std::string target;  ///< directory to make
  std::string model;  ///< where the file does not say whose KV it is
  std::string parent;  ///< a handle that this one continues; empty: none
  std::optional<std::string> label;
  bool json = false;
};

/// `thaw checkpoint` of files: makes a handle of a .thawkv file, its payload copied and compared
/// with its checksums. Model and tokens are taken from the file's metadata, where it has any.
/// Errors: those of the files; kInvalidArgument where nothing says which model it is.
Result<void> run_make_handle(const MakeHandleSettings& settings);

}  // namespace thaw::cli
