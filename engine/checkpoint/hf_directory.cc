#include "engine/checkpoint/hf_directory.h"

#include <filesystem>
#include <utility>

#include <nlohmann/json.hpp>

#include "engine/checkpoint/text_file.h"

namespace thaw::checkpoint {
namespace {

using nlohmann::json;

constexpr std::size_t kMaxJsonDepth = 64;

/// JSON of a file, nested no deeper than is reasonable; discarded where it is none.
json parse_json(const std::string& text) {
  bool too_deep = false;
  const auto watch = [&](int depth, json::parse_event_t /*event*/, json& /*parsed*/) {
    too_deep = too_deep || static_cast<std::size_t>(depth) > kMaxJsonDepth;
    return !too_deep;
  };
  json parsed = json::parse(text, watch, false);
  return too_deep ? json(json::value_t::discarded) : parsed;
}

/// The chat_template of a JSON file: nothing where it has none.
Result<std::optional<StoredTemplate>> template_in_json(const std::string& text,
                                                       const std::string& directory,
                                                       const std::string& file) {
  if (text.empty()) return std::optional<StoredTemplate>();
  const auto bad = [&](const std::string& what) {
    return make_error(Errc::kDataLoss, directory + "/" + file + ": " + what);
  };
  const json parsed = parse_json(text);
  if (!parsed.is_object()) return bad("not a JSON object");
  const auto found = parsed.find("chat_template");
  if (found == parsed.end() || found->is_null()) return std::optional<StoredTemplate>();
  if (found->is_string()) return std::optional(StoredTemplate{found->get<std::string>(), file, ""});
  if (!found->is_array()) return bad("chat_template is neither text nor a list");
  std::string names;
  std::optional<StoredTemplate> stored;
  std::string tool_source;
  for (const json& item : *found) {
    if (!item.is_object() || !item.contains("name") || !item["name"].is_string() ||
        !item.contains("template") || !item["template"].is_string()) {
      return bad("an item of chat_template is no {name, template}");
    }
    if (item["name"] == "default") stored = {item["template"].get<std::string>(), file, ""};
    if (item["name"] == "tool_use") tool_source = item["template"].get<std::string>();
    names += (names.empty() ? "" : ", ") + item["name"].get<std::string>().substr(0, 32);
  }
  if (stored) {
    stored->tool_source = std::move(tool_source);
    return stored;
  }
  return bad("chat_template has no item that is called default; it has " +
             (names.empty() ? "none" : names));
}

/// The text of an optional file; empty where there is none.
Result<std::string> optional_text(const std::filesystem::path& path) {
  auto text = read_text_file(path);
  if (!text && text.error().code == Errc::kNotFound) return std::string();
  return text;
}

}  // namespace

Result<HfDirectory> read_hf_directory(const std::string& path) {
  const std::filesystem::path folder(path);
  HfDirectory directory;
  directory.path = path;
  auto config = read_text_file(folder / "config.json");
  if (!config) return std::move(config).error();
  directory.config = *std::move(config);
  std::string jinja;
  std::string template_json;
  const std::pair<const char*, std::string*> optional_files[] = {
      {"generation_config.json", &directory.generation_config},
      {"tokenizer.json", &directory.tokenizer},
      {"tokenizer_config.json", &directory.tokenizer_config},
      {"special_tokens_map.json", &directory.special_tokens_map},
      {"chat_template.jinja", &jinja},
      {"chat_template.json", &template_json}};
  for (const auto& [name, target] : optional_files) {
    auto text = optional_text(folder / name);
    if (!text) return std::move(text).error();
    *target = *std::move(text);
  }
  if (!jinja.empty()) {
    auto tool_source = optional_text(folder / "additional_chat_templates" / "tool_use.jinja");
    if (!tool_source) return std::move(tool_source).error();
    directory.chat_template =
        StoredTemplate{std::move(jinja), "chat_template.jinja", *std::move(tool_source)};
    return directory;
  }
  auto found = template_in_json(directory.tokenizer_config, path, "tokenizer_config.json");
  if (found && !*found) found = template_in_json(template_json, path, "chat_template.json");
  if (!found) return std::move(found).error();
  directory.chat_template = *std::move(found);
  return directory;
}

}  // namespace thaw::checkpoint
