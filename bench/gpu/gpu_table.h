#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace thaw::bench {

/// The one table of what a GPU should reach, filled from what the benches beside this binary print.

using Json = nlohmann::ordered_json;

/// A bench as a program, and the name under which its JSON is kept.
struct Part {
  std::string name;
  std::string binary;
  std::vector<std::string> arguments;
};

/// All of them. `directory`: for files of an 8B model, 32 GB.
std::vector<Part> gpu_parts(const std::string& directory);

/// Those of two GPUs against one.
std::vector<Part> rank_parts(const std::string& directory);

/// What `part` prints, parsed. Null, after a line on stderr, where it fails.
Json run_part(const Part& part, const std::string& binaries);

/// A row for every figure: {what, unit, thaw, ceiling, share, goal}. Ceilings are measured in the
/// same run; share is thaw's part of it, 1 being the best there could be. What no part has measured
/// is null.
Json gpu_table(const Json& parts);
Json rank_table(const Json& parts);

/// The table in Markdown.
std::string to_markdown(const Json& table);

}  // namespace thaw::bench
