#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "coalescer/core/history.h"
#include "coalescer/openai/model_description.h"
#include "engine/base/pool_status.h"

namespace thaw::coalescer {

/// Bodies of the endpoints that only tell.
/// The sampling that stands for what requests leave out.
nlohmann::ordered_json sampling_json(const SamplingParams& sampling);
std::string models_body(const std::vector<std::string>& names, std::int64_t created,
                        std::uint32_t max_model_len, const ModelDescription& model);
std::string model_body(const std::string& name, std::int64_t created, std::uint32_t max_model_len,
                       const ModelDescription& model);
std::string pool_status_body(const PoolStatus& status);

/// The explanations of one call's requests: an object for one, a list of objects for more.
std::string explanations_json(const std::vector<Explanation>& explanations);
std::string windows_body(const std::vector<ForkHistory::WindowExplanation>& windows);

}  // namespace thaw::coalescer
