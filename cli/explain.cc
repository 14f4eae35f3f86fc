#include "cli/explain.h"

#include <cstdio>

#include <nlohmann/json.hpp>

#include "cli/http_get.h"

namespace thaw::cli {
namespace {

using Json = nlohmann::json;

std::string id_text(const Json& id) {
  return id.is_string() ? id.get<std::string>() : id.dump();
}

// One line of at most `limit` characters, control characters as in JSON.
std::string quoted(const std::string& text, std::size_t limit) {
  return Json(text.substr(0, limit)).dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::string format_request(const Json& request) {
  std::string text = "  " + id_text(request.at("request")) + ": " +
                     request.at("prompt_tokens").dump() + " prompt tokens";
  const Json& shared = request.at("shared_with");
  if (shared.empty()) {
    text += ", nothing in common with another request\n";
  } else {
    text += ", in common:";
    for (const Json& other : shared) {
      text += " " + other.at("tokens").dump() + " with " + id_text(other.at("request")) + ",";
    }
    text.back() = '\n';
  }
  const Json parted = request.value("parted", Json());
  if (parted.is_object()) {
    text += "    parts from " + id_text(parted.at("other")) + " at token " +
            parted.at("position").dump() + ":\n";
    text += "      shared  ..." + quoted(parted.value("text_before", ""), 60) + "\n";
    text += "      here    " + quoted(parted.value("text_here", ""), 60) + "\n";
    text += "      there   " + quoted(parted.value("text_other", ""), 60) + "\n";
    const std::string advice = parted.value("advice", "");
    if (!advice.empty()) text += "    advice: " + advice + "\n";
  }
  return text;
}

}  // namespace

Result<std::string> format_explanations(const std::string& json, const std::string& request) {
  try {
    const Json document = Json::parse(json);
    std::string text;
    for (const Json& window : document.at("windows")) {
      std::string lines;
      for (const Json& entry : window.at("requests")) {
        if (request.empty() || id_text(entry.at("request")) == request)
          lines += format_request(entry);
      }
      if (!lines.empty()) text += "window " + window.at("window").dump() + "\n" + lines;
    }
    if (text.empty()) {
      return make_error(Errc::kNotFound,
                        request.empty() ? "no request has been served yet"
                                        : "request " + request + " is not among the last windows");
    }
    return text;
  } catch (const Json::exception& failure) {
    return make_error(
        Errc::kProtocol,
        std::string("the server's answer is not what a thaw server sends: ") + failure.what());
  }
}

Result<void> run_explain(const ExplainSettings& settings) {
  std::string base = settings.url;
  while (!base.empty() && base.back() == '/')
    base.pop_back();
  if (base.size() > 3 && base.compare(base.size() - 3, 3, "/v1") == 0) base.resize(base.size() - 3);
  auto body = http_get(base + "/v1/forks/recent", settings.api_key, std::chrono::seconds(10));
  if (!body) return body.error();
  if (settings.json) {
    std::printf("%s\n", body->c_str());
    return {};
  }
  auto text = format_explanations(*body, settings.request);
  if (!text) return text.error();
  std::fputs(text->c_str(), stdout);
  return {};
}

}  // namespace thaw::cli
