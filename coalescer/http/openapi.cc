#include "coalescer/http/openapi.h"

#include <algorithm>
#include <array>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "coalescer/http/http_reply.h"
#include "coalescer/http/openapi_uses.h"
#include "coalescer/http/route.h"
#include "coalescer/openai/answer_shapes.h"
#include "coalescer/openai/json_text.h"
#include "coalescer/openai/shape_schema.h"
#include "coalescer/openai/shapes.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

/// What an endpoint takes and gives, beside its path. Every endpoint has a line in texts().
struct EndpointText {
  Endpoint endpoint;
  const char* id;  ///< operationId
  const char* tag;
  const char* summary;
  const Shape* body = nullptr;  ///< null: none
  const Shape* answer = nullptr;  ///< null: text
  const Field* event = nullptr;  ///< where it streams; null: it never does
  std::span<const Field> query{};
  /// Beside those that every endpoint may answer with.
  std::array<int, 6> errors{};
  bool body_may_be_empty = false;  ///< nothing is the same as {}
};

constexpr const char* kSpeak = "completions";
constexpr const char* kResponses = "responses";
constexpr const char* kMessages = "messages";
constexpr const char* kModels = "models";
constexpr const char* kTokens = "tokens";
constexpr const char* kSessions = "sessions";
constexpr const char* kOperators = "operators";
constexpr const char* kServer = "server";

std::span<const EndpointText> texts() {
  static const EndpointText all[] = {
      {Endpoint::kChat,
       "createChatCompletion",
       kSpeak,
       "Go on with a conversation",
       &kChatShape,
       &kChatAnswer,
       &kChatEvent,
       {},
       {404, 409, 429, 504}},
      {Endpoint::kCompletions,
       "createCompletion",
       kSpeak,
       "Go on with a prompt as it is",
       &kCompletionsShape,
       &kCompletionsAnswer,
       &kCompletionsEvent,
       {},
       {404, 429, 504}},
      {Endpoint::kResponses,
       "createResponse",
       kResponses,
       "Go on with a conversation that the server keeps",
       &kResponsesShape,
       &kResponsesAnswer,
       &kResponsesEvent,
       {},
       {404, 409, 429, 504}},
      {Endpoint::kInputTokens,
       "countResponseTokens",
       kResponses,
       "Tokens that a response would read",
       &kResponsesShape,
       &kInputTokensAnswer,
       nullptr,
       {},
       {404, 409}},
      {Endpoint::kResponse,
       "getResponse",
       kResponses,
       "A response as it stands",
       nullptr,
       &kResponsesAnswer,
       &kResponsesEvent,
       kResponseViewQuery,
       {404}},
      {Endpoint::kResponseDelete,
       "deleteResponse",
       kResponses,
       "Let one go",
       nullptr,
       &kResponseDeletedAnswer,
       nullptr,
       {},
       {404}},
      {Endpoint::kResponseCancel,
       "cancelResponse",
       kResponses,
       "End one in the background",
       nullptr,
       &kResponsesAnswer,
       nullptr,
       {},
       {404}},
      {Endpoint::kResponseItems,
       "listResponseItems",
       kResponses,
       "The items of its input",
       nullptr,
       &kResponseItemsAnswer,
       nullptr,
       kItemsPageQuery,
       {404}},
      {Endpoint::kMessages,
       "createMessage",
       kMessages,
       "Go on with a conversation",
       &kMessagesShape,
       &kMessagesAnswer,
       &kMessagesEvent,
       {},
       {404, 409, 429, 504}},
      {Endpoint::kCountTokens,
       "countMessageTokens",
       kMessages,
       "Tokens of a conversation",
       &kCountTokensShape,
       &kCountTokensAnswer,
       nullptr,
       {},
       {404}},
      {Endpoint::kForks,
       "createForks",
       kSpeak,
       "Several calls on one trunk",
       &kForksShape,
       &kForksAnswer,
       &kForksEvent,
       {},
       {404, 409, 429, 504}},
      {Endpoint::kForksRecent, "listRecentForks", kSpeak,
       "What each of the last requests shared, and where it parted", nullptr, &kForksRecentAnswer},
      {Endpoint::kModels, "listModels", kModels, "The served names", nullptr, &kModelsAnswer,
       nullptr, kModelPageQuery},
      {Endpoint::kModel,
       "getModel",
       kModels,
       "One of them",
       nullptr,
       &kModelAnswer,
       nullptr,
       {},
       {404}},
      {Endpoint::kTokenize,
       "tokenize",
       kTokens,
       "Text or messages to token ids",
       &kTokenizeShape,
       &kTokenizeAnswer,
       nullptr,
       {},
       {404}},
      {Endpoint::kDetokenize,
       "detokenize",
       kTokens,
       "Token ids to text",
       &kDetokenizeShape,
       &kDetokenizeAnswer,
       nullptr,
       {},
       {404}},
      {Endpoint::kSessions, "listSessions", kSessions, "Conversations that the server keeps",
       nullptr, &kSessionsAnswer, nullptr, kSessionPageQuery},
      {Endpoint::kSessionCreate,
       "createSession",
       kSessions,
       "Keep a conversation",
       &kSessionCreateShape,
       &kSessionAnswer,
       nullptr,
       {},
       {404, 409, 429, 504}},
      {Endpoint::kSessionImport,
       "importSession",
       kSessions,
       "Keep what another server exported",
       &kSessionImportShape,
       &kSessionAnswer,
       nullptr,
       {},
       {404, 409, 429, 504}},
      {Endpoint::kSession,
       "getSession",
       kSessions,
       "One of them",
       nullptr,
       &kSessionAnswer,
       nullptr,
       kSessionViewQuery,
       {404, 409}},
      {Endpoint::kSessionDelete,
       "deleteSession",
       kSessions,
       "Let one go",
       nullptr,
       &kSessionDeletedAnswer,
       nullptr,
       kSessionDeleteQuery,
       {404, 409}},
      {Endpoint::kSessionFork,
       "forkSession",
       kSessions,
       "Children that begin like it",
       &kSessionForkShape,
       &kSessionsAnswer,
       nullptr,
       {},
       {404, 409, 429},
       true},
      {Endpoint::kSessionCheckpoint,
       "checkpointSession",
       kSessions,
       "Name its state",
       &kSessionCheckpointShape,
       &kSessionCheckpointAnswer,
       nullptr,
       {},
       {404, 409, 429},
       true},
      {Endpoint::kSessionRewind,
       "rewindSession",
       kSessions,
       "Go back to a point",
       &kSessionRewindShape,
       &kSessionAnswer,
       nullptr,
       {},
       {404, 409, 429}},
      {Endpoint::kSessionExport,
       "exportSession",
       kSessions,
       "Write it down",
       &kSessionExportShape,
       &kSessionExportAnswer,
       nullptr,
       {},
       {404, 409, 429},
       true},
      {Endpoint::kSessionTree,
       "getSessionTree",
       kSessions,
       "What it was forked from, and into",
       nullptr,
       &kSessionTreeAnswer,
       nullptr,
       {},
       {404, 409}},
      {Endpoint::kAdminPool, "getPool", kOperators, "Slots, models, workers, the arena", nullptr,
       &kPoolAnswer},
      {Endpoint::kAdminPreload,
       "preloadModel",
       kOperators,
       "Give a model a slot",
       &kPreloadShape,
       &kPreloadAnswer,
       nullptr,
       {},
       {403, 404, 409, 422, 429, 504}},
      {Endpoint::kAdminSnapshots,
       "listSnapshots",
       kOperators,
       "Where the models are",
       nullptr,
       &kSnapshotsAnswer,
       nullptr,
       {},
       {403}},
      {Endpoint::kAdminRegister,
       "registerSnapshot",
       kOperators,
       "Serve one more model",
       &kRegisterShape,
       &kSnapshotAnswer,
       nullptr,
       {},
       {403, 404, 409, 422, 429, 504}},
      {Endpoint::kAdminUnregister,
       "unregisterSnapshot",
       kOperators,
       "Serve a model no longer",
       nullptr,
       &kSnapshotAnswer,
       nullptr,
       {},
       {403, 404, 409}},
      {Endpoint::kHealth, "getHealth", kServer, "200 once a worker serves", nullptr,
       &kHealthAnswer},
      {Endpoint::kVersion, "getVersion", kServer, "Of this server", nullptr, &kVersionAnswer},
      {Endpoint::kMetrics, "getMetrics", kServer, "Prometheus text"},
      {Endpoint::kOpenApi, "getOpenApi", kServer, "This document"},
  };
  return all;
}

/// Any request may meet these: broken HTTP, its size, a server that fails or is busy.
constexpr std::array kCommonErrors = {400, 405, 408, 413, 415, 417, 431, 500, 503};

const EndpointText* text_of(Endpoint endpoint) {
  const auto all = texts();
  const auto found = std::ranges::find(all, endpoint, &EndpointText::endpoint);
  return found == all.end() ? nullptr : &*found;
}

ordered_json json_content(ordered_json schema) {
  return {{"application/json", {{"schema", std::move(schema)}}}};
}

ordered_json header(const char* about, const char* type, bool required) {
  return {{"description", about}, {"required", required}, {"schema", {{"type", type}}}};
}

ordered_json error_response(int status, const ordered_json& schema) {
  ordered_json out = {{"description", reason_phrase(status)}, {"content", json_content(schema)}};
  out["headers"]["x-request-id"] = header("names the answer", "string", true);
  if (status == 401) out["headers"]["WWW-Authenticate"] = header("Bearer", "string", true);
  if (status == 405) out["headers"]["Allow"] = header("the methods there are", "string", true);
  if (status == 429 || status == 503) {
    out["headers"]["Retry-After"] = header("seconds", "integer", false);
    out["headers"]["retry-after-ms"] = header("milliseconds", "integer", false);
  }
  if (status == 500 || status == 504)
    out["headers"]["x-should-retry"] = header("false: trying again cannot help", "string", false);
  return out;
}

bool is_anthropic(Endpoint endpoint) {
  return endpoint == Endpoint::kMessages || endpoint == Endpoint::kCountTokens;
}

/// What the header `anthropic-version` makes of an answer; null: nothing.
const Shape* anthropic_answer_of(Endpoint endpoint) {
  if (endpoint == Endpoint::kModels) return &kMessagesModelsAnswer;
  return endpoint == Endpoint::kModel ? &kMessagesModelAnswer : nullptr;
}

/// Whether the frames of its stream have an `event`.
bool is_named(Endpoint endpoint) {
  return endpoint == Endpoint::kResponses || endpoint == Endpoint::kResponse ||
         endpoint == Endpoint::kMessages;
}

ordered_json answer_of(const EndpointText& text, ShapeSchemas& schemas) {
  ordered_json out = {{"description", "OK"}};
  out["headers"]["x-request-id"] = header("the answer's id, if it has one", "string", true);
  if (text.endpoint == Endpoint::kMetrics) {
    out["content"] = {{"text/plain", {{"schema", {{"type", "string"}}}}}};
    return out;
  }
  if (text.answer == nullptr) {
    out["content"] = json_content({{"type", "object"}});
    return out;
  }
  const Shape* other = anthropic_answer_of(text.endpoint);
  ordered_json schema = schemas.of(*text.answer);
  if (other != nullptr) schema = {{"anyOf", {std::move(schema), schemas.of(*other)}}};
  out["content"] = json_content(std::move(schema));
  if (text.event != nullptr) {
    out["content"]["text/event-stream"] = {
        {"schema",
         {{"description", is_named(text.endpoint)
                              ? "with `stream`: frames `event: TYPE` and `data: EVENT`"
                              : "with `stream`: frames `data: EVENT`, the last of them "
                                "`data: [DONE]`; an error that comes later is a frame too"},
          {"x-event", schemas.of(*text.event, /*is_answer=*/true)}}}};
  }
  if (ordered_json links = links_of(text.endpoint); !links.empty()) out["links"] = std::move(links);
  return out;
}

ordered_json parameters_of(const EndpointPath& path, const EndpointText& text,
                           ShapeSchemas& schemas) {
  ordered_json out = ordered_json::array();
  const std::string_view pattern = path.path;
  if (const std::size_t open = pattern.find('{'); open != std::string_view::npos) {
    out.push_back({{"name", pattern.substr(open + 1, pattern.find('}') - open - 1)},
                   {"in", "path"},
                   {"required", true},
                   {"schema", {{"type", "string"}, {"minLength", 1}}}});
  }
  for (const Field& field : text.query) {
    ordered_json one = {{"name", field.name}, {"in", "query"}, {"description", field.about}};
    if (field.kind == ValueKind::kList) {
      one["style"] = "form";
      one["explode"] = false;
    }
    one["schema"] = schemas.parameter(field);
    out.push_back(std::move(one));
  }
  if (anthropic_answer_of(text.endpoint) != nullptr) {
    out.push_back({{"name", "anthropic-version"},
                   {"in", "header"},
                   {"description", "with it the answer has Anthropic's form"},
                   {"schema", {{"type", "string"}}}});
  }
  return out;
}

ordered_json operation_of(const EndpointPath& path, const EndpointText& text, bool needs_keys,
                          ShapeSchemas& schemas) {
  ordered_json out = {{"operationId", text.id}, {"tags", {text.tag}}, {"summary", text.summary}};
  if (ordered_json parameters = parameters_of(path, text, schemas); !parameters.empty())
    out["parameters"] = std::move(parameters);
  if (text.body != nullptr) {
    ordered_json content = json_content(schemas.of(*text.body));
    if (ordered_json example = example_of(text.endpoint); !example.is_null())
      content["application/json"]["example"] = std::move(example);
    out["requestBody"] = {{"required", !text.body_may_be_empty}, {"content", std::move(content)}};
  }
  const bool is_locked = needs_keys && path.needs_key;
  std::vector<int> errors(kCommonErrors.begin(), kCommonErrors.end());
  if (is_locked) errors.push_back(401);
  for (const int status : text.errors)
    if (status > 0) errors.push_back(status);
  std::ranges::sort(errors);
  ordered_json error = schemas.of(kErrorAnswer);
  if (is_anthropic(text.endpoint)) error = schemas.of(kMessagesErrorAnswer);
  if (anthropic_answer_of(text.endpoint) != nullptr)
    error = {{"anyOf", {std::move(error), schemas.of(kMessagesErrorAnswer)}}};
  out["responses"]["200"] = answer_of(text, schemas);
  for (const int status : errors)
    out["responses"][std::to_string(status)] = error_response(status, error);
  if (text.endpoint == Endpoint::kHealth) {
    out["responses"]["503"]["content"] =
        json_content({{"anyOf", {schemas.of(kHealthAnswer), error}}});
  }
  if (is_locked) out["security"] = {{{"key", ordered_json::array()}}};
  return out;
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

}  // namespace

std::string openapi_document(const OpenApiFacts& facts) {
  ShapeSchemas schemas(facts.limits);
  ordered_json paths = ordered_json::object();
  for (const EndpointPath& path : endpoints()) {
    const EndpointText* text = text_of(path.endpoint);
    if (text == nullptr) continue;  // tests see to it that there is none
    paths[path.path][lower(path.method)] = operation_of(path, *text, facts.needs_keys, schemas);
  }
  ordered_json out = {
      {"openapi", "3.1.0"},
      {"info",
       {{"title", "thaw"},
        {"version", facts.version},
        {"description",
         "The fork backend for LLM agents. Fields that are null count as left out, fields that "
         "are not known are ignored. Bounds of single fields are here; what fields say of each "
         "other is in the errors and in docs/http.md."}}},
      {"servers", {{{"url", "/"}}}},
      {"paths", std::move(paths)}};
  out["components"]["schemas"] = schemas.take_components();
  if (facts.needs_keys)
    out["components"]["securitySchemes"]["key"] = {{"type", "http"}, {"scheme", "bearer"}};
  return dump_json(out);
}

std::shared_ptr<const std::string> OpenApiCache::document(const OpenApiFacts& facts) {
  const std::scoped_lock lock(mutex_);
  if (document_ == nullptr || facts_ != facts) {
    document_ = std::make_shared<const std::string>(openapi_document(facts));
    facts_ = facts;
  }
  return document_;
}

}  // namespace thaw::coalescer
