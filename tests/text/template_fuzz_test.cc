#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "engine/text/chat_template.h"

// Whatever a template or an input holds: an error or a render, never a crash, in bounded work.
namespace thaw::text {
namespace {

using Json = nlohmann::ordered_json;

std::vector<std::string> seeds() {
  std::vector<std::string> sources;
  const std::filesystem::path folder = THAW_SOURCE_DIR "/tests/data/templates";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().extension() != ".jinja") continue;
    std::ifstream in(entry.path());
    std::stringstream text;
    text << in.rdbuf();
    sources.push_back(text.str());
  }
  std::ifstream in(folder / "expressions.json");
  const Json expressions = Json::parse(in);
  for (const Json& entry : expressions["cases"])
    sources.push_back(entry["source"]);
  std::sort(sources.begin(), sources.end());
  return sources;
}

class Mutator {
 public:
  explicit Mutator(unsigned seed) : random_(seed) {}

  std::size_t below(std::size_t bound) {
    return bound == 0 ? 0 : std::uniform_int_distribution<std::size_t>(0, bound - 1)(random_);
  }

  std::string mutate(std::string text, const std::string& other) {
    static const char* const kPieces[] = {"{%",
                                          "%}",
                                          "{{",
                                          "}}",
                                          "{#",
                                          "#}",
                                          "-%}",
                                          "{%-",
                                          "|",
                                          "(",
                                          ")",
                                          "[",
                                          "]",
                                          "[::-1]",
                                          ".",
                                          ",",
                                          "'",
                                          "\\",
                                          "if ",
                                          "else ",
                                          "for ",
                                          " in ",
                                          " is ",
                                          "not ",
                                          "endif",
                                          "endfor",
                                          "set ",
                                          "* 999",
                                          "** 9",
                                          "~",
                                          "\xff",
                                          "\xe2\x80",
                                          "|list",
                                          "|tojson",
                                          "loop",
                                          "none",
                                          "{}",
                                          "9999999999999999999",
                                          "macro m()",
                                          "messages",
                                          "|map('upper')",
                                          "|sort",
                                          ".items()",
                                          "range(9)",
                                          "\n",
                                          "1e999"};
    for (std::size_t edits = 1 + below(4); edits > 0; --edits) {
      const std::size_t at = below(text.size() + 1);
      switch (below(4)) {
        case 0:
          text.erase(at, 1 + below(12));
          break;
        case 1:
          text.insert(at, kPieces[below(std::size(kPieces))]);
          break;
        case 2: {
          const std::size_t from = below(other.size() + 1);
          text.insert(at, other.substr(from, below(40)));
          break;
        }
        default:
          if (at < text.size()) text[at] = static_cast<char>(below(256));
      }
    }
    return text;
  }

 private:
  std::mt19937 random_;
};

TEST(TemplateFuzz, MutatedTemplatesNeverCrash) {
  constexpr unsigned kSeed = 20260719;
  SCOPED_TRACE("seed " + std::to_string(kSeed));
  const std::vector<std::string> sources = seeds();
  ASSERT_GT(sources.size(), 100u);
  std::ifstream in(THAW_SOURCE_DIR "/tests/data/templates/expressions.json");
  RenderOptions options;
  options.extra = Json::parse(in)["variables"];
  options.messages = {{{"role", "system"}, {"content", "s"}},
                      {{"role", "user"}, {"content", "q\xFF"}},
                      {{"role", "assistant"}, {"content", nullptr}}};
  options.max_work = 50'000;
  Mutator mutator(kSeed);
  int rendered = 0;
  for (int i = 0; i < 6000; ++i) {
    const std::string& source = sources[mutator.below(sources.size())];
    const std::string& other = sources[mutator.below(sources.size())];
    const auto parsed = ChatTemplate::parse(mutator.mutate(source, other));
    if (!parsed) {
      EXPECT_FALSE(parsed.error().message.empty());
      continue;
    }
    const auto spans = (*parsed)->render(options);
    if (spans) ++rendered;
  }
  EXPECT_GT(rendered, 300);
}

}  // namespace
}  // namespace thaw::text
