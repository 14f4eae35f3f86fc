#include "engine/grammar/document.h"

#include <algorithm>
#include <string>

#include "tests/grammar/small_vocabulary.h"

namespace thaw::grammar {
namespace {

void expect_refused(const std::string& document, const std::string& why,
                    const CompileLimits& limits = {}) {
  const auto compiled = compile(document, limits);
  ASSERT_FALSE(compiled) << document.substr(0, 200);
  EXPECT_EQ(compiled.error().code, Errc::kInvalidArgument);
  EXPECT_NE(compiled.error().message.find(why), std::string::npos) << compiled.error().message;
}

TEST(DocumentTest, WhatIsNoStructuralTagIsNamed) {
  expect_refused("", "not JSON");
  expect_refused("{", "not JSON");
  expect_refused("[]", "structural_tag");
  expect_refused(R"({"type":"object"})", "structural_tag");
  expect_refused(R"({"type":"structural_tag"})", "format");
  expect_refused(tag(R"({"type":"no_such_format"})"), "no_such_format");
  expect_refused(tag(R"({"type":"regex","pattern":"(ab"})"), "");
  expect_refused(tag(R"({"type":"grammar","grammar":"root ::= nowhere"})"), "nowhere");
  expect_refused(schema(R"({"type":"no_such_type"})"), "no_such_type");
  expect_refused(schema(R"({"$ref":"#/nowhere"})"), "nowhere");
}

TEST(DocumentTest, SizeAndDepthAreBounded) {
  CompileLimits limits;
  limits.document_bytes = 100;
  expect_refused(schema("{}") + std::string(100, ' '), "at most 100", limits);
  std::string deep = "{}";
  for (int i = 0; i < 200; ++i)
    deep = R"({"type":"array","items":)" + deep + "}";
  expect_refused(schema(deep), "nests deeper than 100");
  std::string formats = R"({"type":"const_string","value":"x"})";
  for (int i = 0; i < 100; ++i)
    formats = R"({"type":"sequence","elements":[)" + formats + "]}";
  expect_refused(tag(formats), "deeper");
}

TEST(DocumentTest, WorkIsBounded) {
  CompileLimits limits;
  limits.cpu_time = std::chrono::milliseconds(300);
  limits.parts = 200'000;
  // Each of these asks for far more than it looks like.
  std::string wide = R"({"type":"object","properties":{)";
  for (int i = 0; i < 3000; ++i)
    wide += (i == 0 ? "" : ",") + std::string("\"p") + std::to_string(i) +
            R"(":{"type":"string","pattern":"^[a-z]{1,50}[0-9]{1,50}$"})";
  expect_refused(schema(wide + "}}"), "a simpler document is right", limits);
  // Whether these fit or not, they have to come to an end.
  const auto ends = [&limits](const std::string& document) {
    const auto compiled = compile(document, limits);
    EXPECT_EQ(compiled ? Errc::kInvalidArgument : compiled.error().code, Errc::kInvalidArgument);
  };
  ends(tag(R"({"type":"regex","pattern":"((a{1,90}){1,90}b?){1,90}"})"));
  ends(tag(R"({"type":"regex","pattern":"(a?){900}(a|aa)*(.*x.*){30}"})"));
  std::string doubling = R"({"$defs":{"d0":{"type":"integer"})";
  for (int i = 1; i < 40; ++i) {
    const std::string ref = R"({"$ref":"#/$defs/d)" + std::to_string(i - 1) + R"("})";
    doubling += R"(,"d)" + std::to_string(i) + R"(":{"anyOf":[{"type":"array","items":)" + ref +
                R"(,"minItems":30,"maxItems":90},{"type":"array","prefixItems":[)" + ref + "," +
                ref + "]}]}";
  }
  ends(schema(doubling + R"(},"$ref":"#/$defs/d39"})"));
}

TEST(DocumentTest, LiteralsAreThoseOutsideOfSchemas) {
  const auto texts = literal_texts(
      tag(R"({"type":"tag","begin":"<|turn|>","content":{"type":"json_schema","json_schema":)"
          R"({"const":"<|other|>"}},"end":["</a>","</b>"]})"),
      {});
  ASSERT_TRUE(texts);
  const auto has = [&](const std::string& text) {
    return std::find(texts->begin(), texts->end(), text) != texts->end();
  };
  EXPECT_TRUE(has("<|turn|>"));
  EXPECT_TRUE(has("</b>"));
  EXPECT_FALSE(has("<|other|>"));
}

}  // namespace
}  // namespace thaw::grammar
