#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "cli/terminal.h"
#include "engine/base/result.h"

namespace thaw::cli {

/// How often the sign of an advantage estimate flips when a prefix is computed again instead of
/// resumed, of one file of results, against the flips between two exact resumes (the floor).
/// Counts are of eligible pivots, those with an estimate that is not zero, but for the divergences.
struct DriftStats {
  std::string name;  ///< of its configuration, else of the file
  std::string experiment;
  std::uint64_t num_pivots = 0;
  std::uint64_t eligible = 0;
  std::uint64_t refeed_flips = 0;
  std::uint64_t floor_flips = 0;
  std::uint64_t phantom = 0;  ///< flips of the former kind where there is none of the latter
  std::uint64_t refeed_divergences = 0;  ///< of the first greedy token, over all pivots
  std::uint64_t floor_divergences = 0;

  double excess_points() const;  ///< percentage points by which re-feeding is above the floor
};

/// Of a JSON text {experiment, config {name}, pivots [{A_exact1, A_exact2, A_refeed,
/// greedy_divergence_refeed, greedy_divergence_exact2}]}; `name` where it says none. Nothing where
/// no pivot is eligible. Errors: kDataLoss where it is no such text.
Result<std::optional<DriftStats>> read_drift(std::string_view json, const std::string& name);

nlohmann::ordered_json drift_json(const std::vector<DriftStats>& stats);
std::string format_drift(const Look& look, const std::vector<DriftStats>& stats);

/// `thaw rewind drift`: of a file of results, or of those in a directory.
Result<void> run_rewind_drift(const std::string& path, bool json);

}  // namespace thaw::cli
