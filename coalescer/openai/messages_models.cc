#include "coalescer/openai/messages_models.h"

#include <algorithm>
#include <array>
#include <ctime>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "coalescer/openai/json_text.h"
#include "coalescer/openai/query.h"
#include "coalescer/openai/shapes.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

constexpr std::int64_t kDefaultPage = 20;

/// RFC 3339
std::string time_text(std::int64_t unix_seconds) {
  const std::time_t time = unix_seconds;
  std::tm parts{};
  gmtime_r(&time, &parts);
  char text[40];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

ordered_json message_model_json(const std::string& name, const ServedModel& model) {
  return {{"type", "model"},
          {"id", name},
          {"display_name", name},
          {"created_at", time_text(model.created)},
          {"lifecycle", "active"},
          {"max_input_tokens", model.max_model_len},
          {"max_tokens", model.max_model_len}};
}

}  // namespace

ApiResult<std::string> message_models_body(const ServedModels& models, std::string_view query) {
  std::array<std::optional<std::string>, 3> values;
  if (auto error = read_query(kModelPageQuery, OtherParameters::kIgnored, query, values))
    return std::move(*error);
  const auto limit = static_cast<std::size_t>(whole_or(values[0], kDefaultPage));
  const std::string after = values[1].value_or("");
  const std::string before = values[2].value_or("");
  std::vector<std::pair<std::string, ServedModelPtr>> all;
  for (const ServedModelPtr& model : models.list())
    for (const std::string& name : model->names)
      all.emplace_back(name, model);
  const auto place_of = [&](std::string_view id) {
    const auto found =
        std::ranges::find_if(all, [&](const auto& entry) { return entry.first == id; });
    return static_cast<std::size_t>(found - all.begin());
  };
  std::size_t begin = 0;
  std::size_t end = all.size();
  if (!before.empty()) {
    end = place_of(before);
    begin = end - std::min(end, limit);
  } else {
    if (!after.empty()) begin = std::min(place_of(after) + 1, all.size());
    end = std::min(all.size(), begin + limit);
  }
  ordered_json out = {{"data", ordered_json::array()}};
  for (std::size_t i = begin; i < end; ++i)
    out["data"].push_back(message_model_json(all[i].first, *all[i].second));
  out["has_more"] = before.empty() ? end < all.size() : begin > 0;
  out["first_id"] = begin < end ? ordered_json(all[begin].first) : ordered_json();
  out["last_id"] = begin < end ? ordered_json(all[end - 1].first) : ordered_json();
  return dump_json(out);
}

std::string message_model_body(const std::string& name, const ServedModel& model) {
  return dump_json(message_model_json(name, model));
}

}  // namespace thaw::coalescer
