#include <cstdlib>
#include <fstream>
#include <string>

#include <gtest/gtest.h>

#include "engine/text/chat_template.h"

// Renders against what Python's Jinja gave: scripts/fixtures/template_conformance.py and
// template_expressions.py make the files.
namespace thaw::text {
namespace {

using Json = nlohmann::ordered_json;

Json read_json(const std::string& path) {
  std::ifstream in(path);
  EXPECT_TRUE(in) << "cannot read " << path;
  return Json::parse(in);
}

struct Outcome {
  bool rendered = false;
  std::string text;  ///< or the error's message
};

Outcome render(const std::string& source, const RenderOptions& options) {
  const auto parsed = ChatTemplate::parse(source);
  if (!parsed) return {false, parsed.error().message};
  const auto spans = (*parsed)->render(options);
  if (!spans) return {false, spans.error().message};
  Outcome outcome{true, ""};
  for (const RenderedSpan& span : *spans)
    outcome.text += span.text;
  return outcome;
}

/// `expected` holds "text", or "error" and whether the template raised it itself: only then is the
/// message ours to match.
void expect_outcome(const Outcome& got, const Json& expected, const std::string& where) {
  if (expected.contains("text")) {
    EXPECT_TRUE(got.rendered) << where << ": " << got.text;
    if (got.rendered) {
      EXPECT_EQ(got.text, expected["text"].get<std::string>()) << where;
    }
    return;
  }
  EXPECT_FALSE(got.rendered) << where << ": Python refuses with " << expected["error"]
                             << ", here it gave\n"
                             << got.text;
  if (!got.rendered && expected["raised"].get<bool>()) {
    EXPECT_EQ(got.text, expected["error"].get<std::string>()) << where;
  }
}

void check_corpus(const std::string& path, bool allow_from_json) {
  const Json corpus = read_json(path);
  ASSERT_FALSE(corpus["templates"].empty());
  for (const Json& entry : corpus["templates"]) {
    const std::string source = entry["source"];
    ASSERT_EQ(entry["results"].size(), corpus["conversations"].size());
    for (std::size_t i = 0; i < corpus["conversations"].size(); ++i) {
      const Json& conversation = corpus["conversations"][i];
      RenderOptions options;
      options.messages = conversation["messages"];
      options.tools = conversation["tools"];
      options.add_generation_prompt = conversation["add_generation_prompt"];
      options.extra = conversation["extra"];
      options.bos_token = corpus["bos_token"];
      options.eos_token = corpus["eos_token"];
      options.now_unix_seconds = corpus["now"];
      const Outcome outcome = render(source, options);
      const Json& expected = entry["results"][i];
      // The one filter we have and Python's set-up has not.
      if (allow_from_json && outcome.rendered && expected.contains("error") &&
          source.find("from_json") != std::string::npos) {
        continue;
      }
      expect_outcome(
          outcome, expected,
          entry["name"].get<std::string>() + " / " + conversation["name"].get<std::string>());
    }
  }
}

TEST(TemplateConformance, RulesOneByOne) {
  const Json data = read_json(THAW_SOURCE_DIR "/tests/data/templates/expressions.json");
  ASSERT_GT(data["cases"].size(), 200u);
  for (const Json& entry : data["cases"]) {
    RenderOptions options;
    options.extra = data["variables"];
    options.now_unix_seconds = data["now"];
    const std::string source = entry["source"];
    expect_outcome(render(source, options), entry, source);
  }
}

TEST(TemplateConformance, TemplatesOverConversations) {
  check_corpus(THAW_SOURCE_DIR "/tests/data/templates/conformance.json", false);
}

TEST(TemplateConformance, CorpusFromEnvironment) {
  const char* path = std::getenv("THAW_TEMPLATE_CORPUS");
  if (path == nullptr) GTEST_SKIP() << "THAW_TEMPLATE_CORPUS names no file";
  check_corpus(path, true);
}

}  // namespace
}  // namespace thaw::text
