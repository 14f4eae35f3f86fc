#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "coalescer/core/history.h"
#include "coalescer/openai/served_models.h"

namespace thaw::coalescer {

/// Bodies of the endpoints that only tell.
/// The sampling that stands for what requests leave out.
nlohmann::ordered_json sampling_json(const SamplingParams& sampling);
/// Every name of every model is an entry.
std::string models_body(const ServedModels& models);
std::string model_body(const std::string& name, const ServedModel& model);

/// The explanations of one call's requests: an object for one, a list of objects for more.
std::string explanations_json(const std::vector<Explanation>& explanations);
std::string windows_body(const std::vector<ForkHistory::WindowExplanation>& windows);

}  // namespace thaw::coalescer
