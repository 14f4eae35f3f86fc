#include "coalescer/openai/describe.h"

#include <cstdio>
#include <cstdlib>

#include <nlohmann/json.hpp>

#include "coalescer/openai/json_text.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

/// Numbers of a float as people wrote them: 0.9, not 0.8999999761581421.
double as_written(float value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.7g", static_cast<double>(value));
  return std::strtod(text, nullptr);
}

ordered_json served_model_json(const std::string& name, const ServedModel& served) {
  const ModelDescription& model = served.description;
  return {{"id", name},
          {"object", "model"},
          {"created", served.created},
          {"owned_by", "thaw"},
          {"max_model_len", served.max_model_len},
          {"family", model.family},
          {"num_parameters", model.num_parameters},
          {"dtype", model.dtype},
          {"quantization",
           model.quantization.empty() ? ordered_json(nullptr) : ordered_json(model.quantization)},
          {"context_length", model.context_length},
          {"default_sampling_params", sampling_json(model.default_sampling)}};
}

ordered_json explanation_json(const Explanation& explanation) {
  ordered_json out = {{"request", explanation.request},
                      {"prompt_tokens", explanation.prompt_tokens},
                      {"shared_with", ordered_json::array()},
                      {"parted", nullptr}};
  for (const SharedWith& shared : explanation.shared_with)
    out["shared_with"].push_back({{"request", shared.request}, {"tokens", shared.tokens}});
  if (const auto& parted = explanation.parted) {
    out["parted"] = {{"other", parted->other},
                     {"position", parted->position},
                     {"text_before", parted->text_before},
                     {"text_here", parted->text_here},
                     {"text_other", parted->text_other},
                     {"other_root", parted->other_root},
                     {"identical_tokens_after", parted->identical_tokens_after},
                     {"advice", parted->advice}};
  }
  return out;
}

}  // namespace

ordered_json sampling_json(const SamplingParams& sampling) {
  return {{"temperature", as_written(sampling.temperature)},
          {"top_p", as_written(sampling.top_p)},
          {"top_k", sampling.top_k},
          {"min_p", as_written(sampling.min_p)},
          {"repetition_penalty", as_written(sampling.repetition_penalty)}};
}

std::string models_body(const ServedModels& models) {
  ordered_json out = {{"object", "list"}, {"data", ordered_json::array()}};
  for (const ServedModelPtr& model : models.list())
    for (const std::string& name : model->names)
      out["data"].push_back(served_model_json(name, *model));
  return dump_json(out);
}

std::string model_body(const std::string& name, const ServedModel& model) {
  return dump_json(served_model_json(name, model));
}

std::string explanations_json(const std::vector<Explanation>& explanations) {
  if (explanations.empty()) return "null";
  if (explanations.size() == 1) return dump_json(explanation_json(explanations.front()));
  ordered_json out = ordered_json::array();
  for (const Explanation& explanation : explanations)
    out.push_back(explanation_json(explanation));
  return dump_json(out);
}

std::string windows_body(const std::vector<ForkHistory::WindowExplanation>& windows) {
  ordered_json out = {{"windows", ordered_json::array()}};
  for (const ForkHistory::WindowExplanation& window : windows) {
    ordered_json requests = ordered_json::array();
    for (const Explanation& explanation : window.requests)
      requests.push_back(explanation_json(explanation));
    out["windows"].push_back({{"window", window.window}, {"requests", std::move(requests)}});
  }
  return dump_json(out);
}

}  // namespace thaw::coalescer
