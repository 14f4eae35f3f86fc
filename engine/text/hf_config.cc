#include "engine/text/hf_config.h"

#include <charconv>
#include <string_view>

#include <nlohmann/json.hpp>

namespace thaw::text {
namespace {

using nlohmann::ordered_json;

Error bad_config(const std::string& what) {
  return make_error(Errc::kInvalidArgument, what);
}

Result<ordered_json> parse_object(std::string_view text, const std::string& file) {
  if (text.empty()) return ordered_json::object();
  ordered_json json = ordered_json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) return bad_config(file + " is not JSON");
  if (!json.is_object()) return bad_config(file + " is not an object");
  return json;
}

/// "<s>" or {"content": "<s>", ...}; nothing for null or no such key.
Result<void> read_token(const ordered_json& json, const char* key,
                        std::optional<std::string>& out) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return {};
  const ordered_json* text = &*it;
  if (it->is_object() && it->contains("content")) text = &(*it)["content"];
  if (!text->is_string()) {
    return bad_config("tokenizer_config.json: " + std::string(key) +
                      " is neither a string nor an object with one in \"content\"");
  }
  out = text->get<std::string>();
  return {};
}

Result<void> read_flag(const ordered_json& json, const char* key, std::optional<bool>& out) {
  const auto it = json.find(key);
  if (it == json.end() || it->is_null()) return {};
  if (!it->is_boolean())
    return bad_config("tokenizer_config.json: " + std::string(key) + " is no boolean");
  out = it->get<bool>();
  return {};
}

Result<void> read_added_tokens(const ordered_json& json, std::vector<HfAddedToken>& out) {
  const auto tokens = json.find("added_tokens_decoder");
  if (tokens == json.end() || tokens->is_null()) return {};
  if (!tokens->is_object()) {
    return bad_config("tokenizer_config.json: added_tokens_decoder is not an object");
  }
  for (const auto& [key, value] : tokens->items()) {
    HfAddedToken token;
    const char* const end = key.data() + key.size();
    const auto [stop, error] = std::from_chars(key.data(), end, token.id);
    const auto content = value.is_object() ? value.find("content") : value.end();
    if (error != std::errc() || stop != end || !value.is_object() || content == value.end() ||
        !content->is_string()) {
      return bad_config("tokenizer_config.json: added_tokens_decoder has \"" + key.substr(0, 32) +
                        "\", which is not an id with an object that has a \"content\"");
    }
    const auto flag = [&value](const char* name) {
      const auto it = value.find(name);
      return it != value.end() && it->is_boolean() && it->get<bool>();
    };
    token.content = content->get<std::string>();
    token.special = flag("special");
    token.lstrip = flag("lstrip");
    token.rstrip = flag("rstrip");
    token.single_word = flag("single_word");
    out.push_back(std::move(token));
  }
  return {};
}

Result<void> read_templates(const ordered_json& json, HfTokenizerConfig& config) {
  const auto source = json.find("chat_template");
  if (source == json.end() || source->is_null()) return {};
  if (source->is_string()) {
    config.chat_template = source->get<std::string>();
    return {};
  }
  const auto text = [](const ordered_json& object, const char* key) -> const ordered_json* {
    if (!object.is_object()) return nullptr;
    const auto it = object.find(key);
    return it != object.end() && it->is_string() ? &*it : nullptr;
  };
  if (source->is_array()) {
    for (const ordered_json& named : *source) {
      const ordered_json* name = text(named, "name");
      const ordered_json* body = text(named, "template");
      if (name == nullptr || body == nullptr) {
        return bad_config(
            "tokenizer_config.json: chat_template has an entry without \"name\" or "
            "\"template\"");
      }
      if (name->get<std::string>() == "default") {
        config.chat_template = body->get<std::string>();
      } else {
        config.named_templates.emplace_back(name->get<std::string>(), body->get<std::string>());
      }
    }
    return {};
  }
  return bad_config(
      "tokenizer_config.json: chat_template is neither a string nor a list of templates");
}

}  // namespace

Result<HfTokenizerConfig> read_hf_config(const HfTokenizerFiles& files) {
  const auto json = parse_object(files.tokenizer_config_json, "tokenizer_config.json");
  if (!json) return json.error();
  const auto map = parse_object(files.special_tokens_map_json, "special_tokens_map.json");
  if (!map) return map.error();
  HfTokenizerConfig config;
  for (const auto& [key, token] :
       {std::pair("bos_token", &config.bos_token), std::pair("eos_token", &config.eos_token)}) {
    if (auto read = read_token(*json, key, *token); !read) return read.error();
    if (*token || json->contains(key)) continue;
    if (auto read = read_token(*map, key, *token); !read) return read.error();
  }
  for (const auto& [key, flag] : {std::pair("add_bos_token", &config.add_bos_token),
                                  std::pair("add_eos_token", &config.add_eos_token)}) {
    if (auto read = read_flag(*json, key, *flag); !read) return read.error();
  }
  if (auto read = read_added_tokens(*json, config.added_tokens); !read) return read.error();
  if (auto read = read_templates(*json, config); !read) return read.error();
  if (!files.chat_template_jinja.empty()) config.chat_template = files.chat_template_jinja;
  if (const auto it = json->find("tokenizer_class"); it != json->end() && it->is_string()) {
    config.tokenizer_class = it->get<std::string>();
  }
  return config;
}

}  // namespace thaw::text
