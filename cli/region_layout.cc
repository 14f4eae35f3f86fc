#include "cli/region_layout.h"

#include <initializer_list>
#include <map>

#include "engine/model/load.h"

namespace thaw::cli {
namespace {

/// Names of a layer's tensors in our own words, region by region.
constexpr std::initializer_list<std::initializer_list<const char*>> kLayerRegions = {
    {"q", "k", "v"},
    {"q_bias", "k_bias", "v_bias"},
    {"o"},
    {"o_bias"},
    {"q_norm"},
    {"k_norm"},
    {"gate", "up"},
    {"gate_bias", "up_bias"},
    {"down"},
    {"down_bias"},
    {"attention_norm"},
    {"ffn_norm"}};

}  // namespace

std::vector<std::vector<model::TensorRule>> vllm_parameters(const model::ModelConfig& config) {
  std::map<std::string, model::TensorRule> by_name;
  for (model::TensorRule& rule : model::tensor_list(config))
    if (!rule.hf_name.empty()) by_name.emplace(rule.name, std::move(rule));
  std::vector<std::vector<model::TensorRule>> parameters;
  const auto add = [&](const std::string& prefix, std::initializer_list<const char*> names) {
    std::vector<model::TensorRule> parts;
    for (const char* name : names)
      if (const auto found = by_name.find(prefix + name); found != by_name.end())
        parts.push_back(found->second);
    if (!parts.empty()) parameters.push_back(std::move(parts));
  };
  add("", {"token_embedding"});
  for (int layer = 0; layer < config.num_layers; ++layer)
    for (const auto& names : kLayerRegions)
      add("layers." + std::to_string(layer) + ".", names);
  add("", {"output_norm"});
  add("", {"head"});
  return parameters;
}

Result<std::vector<RegionTensors>> layout_regions(const model::ModelSource& source) {
  const auto plan = model::plan_image(source, {}, {});
  if (!plan) return plan.error();
  std::map<std::string, const checkpoint::StoredTensor*> by_name;
  std::vector<RegionTensors> regions;
  for (const model::PlannedTensor& tensor : plan->tensors) {
    const checkpoint::StoredTensor* stored = tensor.parts.front().stored;  // the CPU's have one
    by_name.emplace(tensor.name, stored);
    if (source.naming == model::TensorNaming::kGguf) regions.push_back({stored});
  }
  if (source.naming == model::TensorNaming::kGguf) return regions;

  const auto add = [&](const std::string& prefix, std::initializer_list<const char*> names) {
    RegionTensors region;
    for (const char* name : names) {
      const auto found = by_name.find(prefix + name);
      if (found == by_name.end()) continue;
      // A region holds one type: what differs begins another.
      if (!region.empty() && region.back()->dtype != found->second->dtype) {
        regions.push_back(region);
        region.clear();
      }
      region.push_back(found->second);
    }
    if (!region.empty()) regions.push_back(region);
  };
  add("", {"token_embedding"});
  for (int layer = 0; layer < source.config.num_layers; ++layer)
    for (const auto& names : kLayerRegions)
      add("layers." + std::to_string(layer) + ".", names);
  add("", {"output_norm"});
  add("", {"head"});
  add("", {"rope_factors"});
  return regions;
}

}  // namespace thaw::cli
