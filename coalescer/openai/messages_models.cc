#include "coalescer/openai/messages_models.h"

#include <algorithm>
#include <charconv>
#include <ctime>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "coalescer/openai/json_text.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

constexpr std::size_t kDefaultPage = 20;
constexpr std::size_t kMaxPage = 1000;

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
  while (!query.empty()) {
    const std::string_view pair = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), pair.size() + 1));
    const std::string_view name = pair.substr(0, pair.find('='));
    const std::string_view value =
        name.size() < pair.size() ? pair.substr(name.size() + 1) : std::string_view();
    if (name == "after_id") page.after = value;
    if (name == "before_id") page.before = value;
    if (name != "limit") continue;
    const auto [end, error] =
        std::from_chars(value.data(), value.data() + value.size(), page.limit);
    if (error != std::errc() || end != value.data() + value.size() || page.limit < 1 ||
        page.limit > kMaxPage) {
      return invalid_field("limit", "`limit` is `" + std::string(value.substr(0, 40)) +
                                        "`; it must be a whole number from 1 to " +
                                        std::to_string(kMaxPage));
    }
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
