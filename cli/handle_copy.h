#pragma once

#include <optional>
#include <string>

#include "engine/base/result.h"

namespace thaw::cli {

struct CopySettings {
  std::string handle;  ///< a handle's directory, or its handle.json
  std::string target;  ///< directory to make
  std::optional<std::string> label;
  bool description_only = false;  ///< leave blocks and weights where they are
  bool verify = true;  ///< THAW_VERIFY
  bool json = false;
};

/// `thaw branch`: a child of a handle in a directory of its own, with an id of its own.
Result<void> run_branch(const CopySettings& settings);

/// `thaw checkout`: the handle itself, in another directory.
Result<void> run_checkout(const CopySettings& settings);

}  // namespace thaw::cli
