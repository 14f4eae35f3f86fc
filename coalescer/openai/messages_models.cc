#include "coalescer/openai/messages_models.h"

#include <algorithm>
#include <ctime>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "coalescer/openai/json_text.h"
#include "coalescer/openai/query.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

constexpr std::size_t kDefaultPage = 20;
constexpr std::uint32_t kMaxPage = 1000;

/// RFC 3339
std::string time_text(std::int64_t unix_seconds) {
  const std::time_t time = unix_seconds;
  std::tm parts{};
  gmtime_r(&time, &parts);
  char text[40];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

ordered_json model_json(const std::string& name, const ServedModel& model) {
  return {{"type", "model"},
          {"id", name},
          {"display_name", name},
          {"created_at", time_text(model.created)},
          {"lifecycle", "active"},
          {"max_input_tokens", model.max_model_len},
          {"max_tokens", model.max_model_len}};
}

struct Page {
  std::size_t limit = kDefaultPage;
  std::string_view after;
  std::string_view before;
};

/// Parameters that are not known are ignored, as fields are.
ApiResult<Page> parse_page(std::string_view query) {
  Page page;
  while (const auto parameter = take_parameter(query)) {
    if (parameter->name == "after_id") page.after = parameter->value;
    if (parameter->name == "before_id") page.before = parameter->value;
    if (parameter->name != "limit") continue;
    const auto limit = page_limit(*parameter, kMaxPage);
    if (const auto* error = std::get_if<ApiError>(&limit)) return *error;
    page.limit = std::get<std::uint32_t>(limit);
  }
  return page;
}

}  // namespace

ApiResult<std::string> message_models_body(const ServedModels& models, std::string_view query) {
  auto parsed = parse_page(query);
  if (auto* error = std::get_if<ApiError>(&parsed)) return std::move(*error);
  const Page& page = std::get<Page>(parsed);
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
  if (!page.before.empty()) {
    end = place_of(page.before);
    begin = end - std::min(end, page.limit);
  } else {
    if (!page.after.empty()) begin = std::min(place_of(page.after) + 1, all.size());
    end = std::min(all.size(), begin + page.limit);
  }
  ordered_json out = {{"data", ordered_json::array()}};
  for (std::size_t i = begin; i < end; ++i)
    out["data"].push_back(model_json(all[i].first, *all[i].second));
  out["has_more"] = page.before.empty() ? end < all.size() : begin > 0;
  out["first_id"] = begin < end ? ordered_json(all[begin].first) : ordered_json();
  out["last_id"] = begin < end ? ordered_json(all[end - 1].first) : ordered_json();
  return dump_json(out);
}

std::string message_model_body(const std::string& name, const ServedModel& model) {
  return dump_json(model_json(name, model));
}

}  // namespace thaw::coalescer
