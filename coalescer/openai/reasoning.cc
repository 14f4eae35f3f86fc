#include "coalescer/openai/reasoning.h"

#include <algorithm>
#include <string_view>

namespace thaw::coalescer {
namespace {

/// Enough for a marker in pieces and the blank lines around it.
constexpr std::size_t kTailTokens = 24;

}  // namespace

ThinkingStart thinking_start(const ChatForm& form, std::span<const TokenId> prompt,
                             const TextCodec& codec) {
  if (!form.thinks()) return ThinkingStart::kNone;
  const std::string tail =
      codec.decode(prompt.last(std::min(prompt.size(), kTailTokens)), /*keep_special=*/true);
  std::string_view text = tail;
  const std::size_t last = text.find_last_not_of(" \t\r\n");
  text = text.substr(0, last == std::string_view::npos ? 0 : last + 1);
  if (text.ends_with(form.think_end)) return ThinkingStart::kNone;
  if (text.ends_with(form.think_begin)) return ThinkingStart::kOpen;
  return ThinkingStart::kMayBegin;
}

void read_reasoning_effort(JsonFields& fields, nlohmann::ordered_json& template_kwargs,
                           std::string_view name) {
  std::string effort;
  fields.read(name, effort);
  if (effort.empty() || fields.failed()) return;
  const auto set = [&](const char* key, const nlohmann::ordered_json& value) {
    if (!template_kwargs.contains(key)) template_kwargs[key] = value;
  };
  if (effort == "none") {
    set("enable_thinking", false);
    set("thinking", false);
  }
  set("reasoning_effort", effort);
}

}  // namespace thaw::coalescer
