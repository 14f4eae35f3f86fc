// A chat template over a conversation of 100 messages: what a request pays before its tokens.

#include <fstream>
#include <iterator>
#include <string>

#include <benchmark/benchmark.h>

#include "engine/text/chat_template.h"

namespace thaw::text {
namespace {

std::string read_template(const char* name) {
  std::ifstream in(std::string(THAW_SOURCE_DIR "/tests/data/templates/") + name);
  return {std::istreambuf_iterator<char>(in), {}};
}

/// 50 turns of some 100 words, every fifth with a tool call and its result.
RenderOptions long_conversation() {
  RenderOptions options;
  options.messages.push_back({{"role", "system"}, {"content", "Be brief."}});
  const nlohmann::ordered_json call = {
      {"id", "call12345"},
      {"type", "function"},
      {"function", {{"name", "search"}, {"arguments", {{"query", "rivers"}, {"limit", 3}}}}}};
  std::string words;
  for (int i = 0; i < 100; ++i)
    words += "word" + std::to_string(i) + ' ';
  for (int turn = 0; options.messages.size() < 100; ++turn) {
    options.messages.push_back({{"role", "user"}, {"content", words}});
    if (turn % 5 == 0) {
      options.messages.push_back({{"role", "assistant"}, {"content", ""}, {"tool_calls", {call}}});
      options.messages.push_back({{"role", "tool"}, {"content", words}});
    }
    options.messages.push_back({{"role", "assistant"}, {"content", words}});
  }
  options.tools = nlohmann::ordered_json::array(
      {{{"type", "function"},
        {"function", {{"name", "search"}, {"parameters", {{"type", "object"}}}}}}});
  return options;
}

void render_hundred_messages(benchmark::State& state, const char* name) {
  const auto chat_template = ChatTemplate::parse(read_template(name)).value();
  const RenderOptions options = long_conversation();
  for (auto _ : state) {
    const auto spans = chat_template->render(options);
    if (!spans) state.SkipWithError(spans.error().message.c_str());
    benchmark::DoNotOptimize(spans);
  }
}
BENCHMARK_CAPTURE(render_hundred_messages, Qwen3, "qwen3_style.jinja")
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(render_hundred_messages, Llama3, "llama3_style.jinja")
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace thaw::text
