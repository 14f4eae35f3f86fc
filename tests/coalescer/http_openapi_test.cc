#include <functional>
#include <set>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/http/openapi.h"
#include "coalescer/http/route.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

json document(bool needs_keys = false) {
  OpenApiFacts facts;
  facts.limits.max_choices = 5;
  facts.limits.vocab_size = 300;
  facts.version = "1.2.3";
  facts.needs_keys = needs_keys;
  return json::parse(openapi_document(facts));
}

std::string lower(std::string text) {
  for (char& c : text)
    c = static_cast<char>(std::tolower(c));
  return text;
}

TEST(OpenApi, EveryEndpointIsThere) {
  const json out = document();
  EXPECT_EQ(out["openapi"], "3.1.0");
  EXPECT_EQ(out["info"]["version"], "1.2.3");
  std::set<std::string> ids;
  for (const EndpointPath& entry : endpoints()) {
    ASSERT_TRUE(out["paths"].contains(entry.path)) << entry.path;
    ASSERT_TRUE(out["paths"][entry.path].contains(lower(entry.method))) << entry.path;
    const json& operation = out["paths"][entry.path][lower(entry.method)];
    EXPECT_TRUE(ids.insert(operation["operationId"]).second) << entry.path;
    const bool has_body =
        std::string(entry.method) == "POST" && entry.endpoint != Endpoint::kResponseCancel;
    EXPECT_EQ(operation.contains("requestBody"), has_body) << entry.path;
    EXPECT_TRUE(operation["responses"].contains("200")) << entry.path;
    EXPECT_TRUE(operation["responses"].contains("400")) << entry.path;
    EXPECT_FALSE(operation.contains("security")) << entry.path;
  }
}

TEST(OpenApi, EveryReferenceResolves) {
  const json out = document();
  int count = 0;
  std::function<void(const json&)> visit = [&](const json& value) {
    if (value.is_object() && value.contains("$ref")) {
      const std::string ref = value["$ref"];
      ASSERT_TRUE(ref.starts_with("#/")) << ref;
      EXPECT_TRUE(out.contains(json::json_pointer(ref.substr(1)))) << ref;
      ++count;
    }
    if (value.is_structured())
      for (const json& inner : value)
        visit(inner);
  };
  visit(out);
  EXPECT_GT(count, 100);
}

TEST(OpenApi, LinksLeadToOperationsAndBodiesHaveExamples) {
  const json out = document();
  std::set<std::string> ids;
  for (const auto& path : out["paths"])
    for (const json& operation : path)
      ids.insert(operation["operationId"]);
  int num_links = 0;
  for (const auto& [name, path] : out["paths"].items()) {
    for (const json& operation : path) {
      const json& links = operation["responses"]["200"].value("links", json::object());
      for (const json& link : links) {
        EXPECT_TRUE(ids.contains(link["operationId"])) << link;
        EXPECT_TRUE(link.value("parameters", json::object()).is_object()) << link;
        EXPECT_TRUE(link.value("requestBody", json::object()).is_object()) << link;
        ++num_links;
      }
      // A document to import comes from an export.
      if (!operation.contains("requestBody") || name == "/v1/sessions/import") continue;
      const json& content = operation["requestBody"]["content"]["application/json"];
      EXPECT_TRUE(content.value("example", json()).is_object()) << name;
    }
  }
  EXPECT_GT(num_links, 20);
}

TEST(OpenApi, BoundsAreTheServers) {
  const json schemas = document()["components"]["schemas"];
  const json& chat = schemas["ChatRequest"]["properties"];
  EXPECT_EQ(chat["n"]["maximum"], 5);
  EXPECT_EQ(chat["allowed_token_ids"]["items"]["maximum"], 299);
  EXPECT_EQ(chat["temperature"]["type"], json::parse(R"(["number", "null"])"));
  EXPECT_EQ(chat["temperature"]["maximum"], 2);
  EXPECT_EQ(chat["top_p"]["exclusiveMinimum"], 0);
  EXPECT_EQ(chat["use_beam_search"]["enum"], json::parse("[false, null]"));
  EXPECT_EQ(chat["prompt_embeds"]["type"], "null");
  EXPECT_EQ(schemas["ChatRequest"]["anyOf"][0]["required"], json::parse(R"(["messages"])"));
  EXPECT_EQ(schemas["Message"]["required"], json::parse(R"(["role"])"));
  EXPECT_EQ(schemas["CompletionRequest"]["required"], json::parse(R"(["prompt"])"));
  EXPECT_EQ(schemas["ChatCompletion"]["additionalProperties"], false);
}

TEST(OpenApi, IsWrittenOnceForAServersFacts) {
  OpenApiCache cache;
  OpenApiFacts facts;
  facts.limits.vocab_size = 300;
  const auto first = cache.document(facts);
  EXPECT_EQ(*first, openapi_document(facts));
  EXPECT_EQ(cache.document(facts), first);
  facts.limits.vocab_size = 400;
  const auto second = cache.document(facts);
  EXPECT_EQ(*second, openapi_document(facts));
  EXPECT_NE(*second, *first);
}

TEST(OpenApi, KeysAreNeededWhereTheServerHasSome) {
  const json out = document(/*needs_keys=*/true);
  EXPECT_EQ(out["components"]["securitySchemes"]["key"]["scheme"], "bearer");
  for (const EndpointPath& entry : endpoints()) {
    const json& operation = out["paths"][entry.path][lower(entry.method)];
    EXPECT_EQ(operation.contains("security"), entry.needs_key) << entry.path;
    EXPECT_EQ(operation["responses"].contains("401"), entry.needs_key) << entry.path;
  }
}

}  // namespace
}  // namespace thaw::coalescer
