#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "cli/terminal.h"
#include "engine/base/result.h"
#include "kvsnap/handle_directory.h"

namespace thaw::cli {

/// What a handle is called: its label, else the name of its directory.
std::string handle_name(const kvsnap::HandleDirectory& directory);
/// The first digits of an id.
std::string short_id(const std::string& id);

/// Everything that a handle says, with the names that scripts know (docs/cli.md). `checksums`:
/// "not compared", "right", or "none" where a file is too old to have some.
nlohmann::ordered_json handle_json(const kvsnap::HandleDirectory& directory,
                                   const std::string& checksums);

/// The same as lines for people.
std::string format_handle(const Look& look, const kvsnap::HandleDirectory& directory,
                          const std::string& checksums);

struct InspectSettings {
  std::string handle;
  bool json = false;
  bool verify = false;  ///< compare every payload with its checksum
};

/// `thaw inspect`.
Result<void> run_inspect(const InspectSettings& settings);

/// As `thaw --json` prints: indented, invalid UTF-8 replaced.
void print_json(const nlohmann::ordered_json& value);

}  // namespace thaw::cli
