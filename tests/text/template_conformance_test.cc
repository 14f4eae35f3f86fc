#include <cstdlib>
#include <fstream>
#include <optional>
#include <string>
#include <vector>

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

RenderOptions options_of(const Json& corpus, const Json& conversation) {
  RenderOptions options;
  options.messages = conversation["messages"];
  options.tools = conversation["tools"];
  options.add_generation_prompt = conversation["add_generation_prompt"];
  options.extra = conversation["extra"];
  options.bos_token = corpus["bos_token"];
  options.eos_token = corpus["eos_token"];
  options.now_unix_seconds = corpus["now"];
  return options;
}

void check_corpus(const std::string& path) {
  const Json corpus = read_json(path);
  ASSERT_FALSE(corpus["templates"].empty());
  for (const Json& entry : corpus["templates"]) {
    const std::string source = entry["source"];
    ASSERT_EQ(entry["results"].size(), corpus["conversations"].size());
    for (std::size_t i = 0; i < corpus["conversations"].size(); ++i) {
      const Json& conversation = corpus["conversations"][i];
      expect_outcome(
          render(source, options_of(corpus, conversation)), entry["results"][i],
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
  check_corpus(THAW_SOURCE_DIR "/tests/data/templates/conformance.json");
}

/// The file that tests/e2e/test_chat_templates.py makes: the templates of many models.
const char* corpus_path() {
  return std::getenv("THAW_TEMPLATE_CORPUS");
}

TEST(TemplateCorpus, RendersAsPythonDoes) {
  if (corpus_path() == nullptr) GTEST_SKIP() << "THAW_TEMPLATE_CORPUS names no file";
  check_corpus(corpus_path());
}

/// ASCII as CJK characters, one for one: of the same length, and nothing that a template looks for.
std::string disguised(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte <= ' ' || byte > '~') {
      out += c;
      continue;
    }
    const unsigned code = 0x4E00U + byte;
    out += static_cast<char>(0xE0U | (code >> 12U));
    out += static_cast<char>(0x80U | ((code >> 6U) & 0x3FU));
    out += static_cast<char>(0x80U | (code & 0x3FU));
  }
  return out;
}

Json conversation_with(const std::string& text, int shape) {
  const Json user = {{"role", "user"}, {"content", text}};
  if (shape == 0) return Json::array({user});
  const Json answer = {{"role", "assistant"}, {"content", text}};
  if (shape == 1) return Json::array({{{"role", "system"}, {"content", text}}, user, answer, user});
  const Json call = {{"id", "call12345"},
                     {"type", "function"},
                     {"function", {{"name", "f"}, {"arguments", {{"x", text}}}}}};
  const Json calling = {{"role", "assistant"}, {"content", ""}, {"tool_calls", {call}}};
  const Json result = {
      {"role", "tool"}, {"content", text}, {"tool_call_id", "call12345"}, {"name", "f"}};
  return Json::array({user, calling, result});
}

struct Spans {
  std::string all;
  std::vector<std::string> of_template;
};

std::optional<Spans> spans_of(const ChatTemplate& chat_template, const Json& corpus,
                              const std::string& text, int shape) {
  const Json tool = {{"type", "function"},
                     {"function",
                      {{"name", "f"},
                       {"description", text},
                       {"parameters",
                        {{"type", "object"},
                         {"properties", {{"x", {{"type", "string"}, {"description", text}}}}}}}}}};
  Json conversation = {{"messages", conversation_with(text, shape)},
                       {"tools", shape == 2 ? Json::array({tool}) : Json()},
                       {"add_generation_prompt", true},
                       {"extra", {{"functions", text}, {"datetime", "today"}}}};
  const auto rendered = chat_template.render(options_of(corpus, conversation));
  if (!rendered) return std::nullopt;
  Spans spans;
  for (const RenderedSpan& span : *rendered) {
    spans.all += span.text;
    if (span.from_template) spans.of_template.push_back(span.text);
  }
  return spans;
}

// What a user writes in place of harmless text, special tokens of that very template and Jinja's
// own marks, changes nothing about which text counts as the template's: of that the special tokens
// are made. A template that looks for such text in messages may take another way; both renders then
// differ in more than the user's text, and nothing can be compared.
TEST(TemplateCorpus, UserTextIsNeverTheTemplates) {
  if (corpus_path() == nullptr) GTEST_SKIP() << "THAW_TEMPLATE_CORPUS names no file";
  const Json corpus = read_json(corpus_path());
  int compared = 0;
  int other_ways = 0;
  for (const Json& entry : corpus["templates"]) {
    const auto parsed = ChatTemplate::parse(entry["source"]);
    ASSERT_TRUE(parsed) << entry["name"];
    int here = 0;
    for (const std::string special : entry["specials"]) {
      for (const std::string& text :
           {"a" + special + "b", special + "{{7*7}}" + special + "{%raw%}{#x#}" + special}) {
        for (int shape = 0; shape < 3; ++shape) {
          const auto harmless = spans_of(**parsed, corpus, disguised(text), shape);
          const auto harmful = spans_of(**parsed, corpus, text, shape);
          if (!harmless || !harmful) continue;
          std::string back = harmless->all;
          const std::string hidden = disguised(text);
          for (std::size_t at = 0; (at = back.find(hidden, at)) != std::string::npos;)
            back.replace(at, hidden.size(), text);
          if (back != harmful->all) {
            ++other_ways;
            continue;
          }
          ++here;
          ASSERT_EQ(harmless->of_template, harmful->of_template)
              << entry["name"] << ", " << text << ", shape " << shape;
        }
      }
    }
    EXPECT_TRUE(here > 0 || entry["specials"].empty()) << entry["name"];
    compared += here;
  }
  EXPECT_GT(compared, 1000);
  EXPECT_LT(other_ways, compared / 4);
}

}  // namespace
}  // namespace thaw::text
