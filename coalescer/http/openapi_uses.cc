#include "coalescer/http/openapi_uses.h"

#include <initializer_list>
#include <utility>

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

constexpr const char* kId = "$response.body#/id";

constexpr std::pair<Endpoint, const char*> kExamples[] = {
    {Endpoint::kChat,
     R"({"messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 16})"},
    {Endpoint::kCompletions, R"({"prompt": "Once upon a time", "max_tokens": 16, "n": 2})"},
    {Endpoint::kResponses, R"({"input": "Say hello.", "max_output_tokens": 16})"},
    {Endpoint::kInputTokens, R"({"input": "Say hello."})"},
    {Endpoint::kMessages,
     R"({"max_tokens": 16, "messages": [{"role": "user", "content": "Say hello."}]})"},
    {Endpoint::kCountTokens, R"({"messages": [{"role": "user", "content": "Say hello."}]})"},
    {Endpoint::kForks, R"({"trunk": {"messages": [{"role": "user", "content": "Say"}]},
      "forks": [{"label": "a", "messages": [{"role": "user", "content": "hello."}]},
                {"label": "b", "temperature": 0}], "max_tokens": 8})"},
    {Endpoint::kTokenize, R"({"prompt": "Say hello.", "return_token_strs": true})"},
    {Endpoint::kDetokenize, R"({"tokens": [1, 2, 3]})"},
    {Endpoint::kSessionCreate,
     R"({"messages": [{"role": "system", "content": "Be brief."}], "label": "main"})"},
    {Endpoint::kSessionFork, R"({"n": 2, "labels": ["left", "right"]})"},
    {Endpoint::kSessionCheckpoint, R"({"name": "before"})"},
    {Endpoint::kSessionRewind, R"({"messages": 1})"},
    {Endpoint::kSessionExport, "{}"},
    {Endpoint::kAdminRegister, R"({"name": "other", "path": "models/other.gguf"})"},
    {Endpoint::kAdminPreload, R"({"model": "other"})"},
};

/// Calls whose path has the answer's id.
void link_below(ordered_json& links, std::initializer_list<const char*> operations) {
  for (const char* operation : operations)
    links[operation] = {{"operationId", operation}, {"parameters", {{"id", kId}}}};
}

/// A call whose body is about the answer's id; what else it needs is the caller's.
void link_body(ordered_json& links, const char* name, const char* operation, ordered_json body) {
  links[name] = {{"operationId", operation}, {"requestBody", std::move(body)}};
}

}  // namespace

ordered_json example_of(Endpoint endpoint) {
  for (const auto& [of, text] : kExamples)
    if (of == endpoint) return ordered_json::parse(text);
  return nullptr;
}

ordered_json links_of(Endpoint endpoint) {
  ordered_json links = ordered_json::object();
  switch (endpoint) {
    case Endpoint::kSessionCreate:
    case Endpoint::kSessionImport:
      link_below(links, {"getSession", "getSessionTree", "forkSession", "checkpointSession",
                         "rewindSession", "exportSession", "deleteSession"});
      link_body(links, "turn", "createChatCompletion", {{"session_id", kId}});
      link_body(links, "branches", "createForks", {{"trunk", {{"session_id", kId}}}});
      break;
    case Endpoint::kSessionFork:
      links["child"] = {{"operationId", "getSession"},
                        {"parameters", {{"id", "$response.body#/data/0/id"}}}};
      break;
    case Endpoint::kResponses:
      link_below(links, {"getResponse", "listResponseItems", "cancelResponse", "deleteResponse"});
      link_body(links, "next", "createResponse", {{"previous_response_id", kId}});
      link_body(links, "nextTokens", "countResponseTokens", {{"previous_response_id", kId}});
      link_body(links, "branches", "createForks", {{"trunk", {{"response_id", kId}}}});
      break;
    case Endpoint::kChat:
      link_body(links, "session", "createSession", {{"response_id", kId}});
      link_body(links, "branches", "createForks", {{"trunk", {{"response_id", kId}}}});
      break;
    case Endpoint::kModels:
      links["model"] = {{"operationId", "getModel"},
                        {"parameters", {{"id", "$response.body#/data/0/id"}}}};
      break;
    case Endpoint::kTokenize:
      link_body(links, "text", "detokenize", {{"tokens", "$response.body#/tokens"}});
      break;
    default:
      break;
  }
  return links;
}

}  // namespace thaw::coalescer
