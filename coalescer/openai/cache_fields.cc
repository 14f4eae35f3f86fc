#include "coalescer/openai/cache_fields.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "coalescer/core/token_trie.h"
#include "coalescer/openai/json_fields.h"

namespace thaw::coalescer {
namespace {

constexpr std::size_t kMaxBreakpoints = 16;
constexpr std::chrono::seconds kLongestTtl{24 * 3600};
/// Of a breakpoint without a time.
constexpr std::chrono::seconds kDefaultTtl{30 * 60};

void read_options(JsonFields& fields, CacheFields& cache) {
  auto options = fields.object("prompt_cache_options");
  if (!options) return;
  std::string mode;
  options->read("mode", mode);
  cache.is_explicit = mode == "explicit";
  options->read("prewarm", cache.prewarm);
  std::string ttl;
  options->read("ttl", ttl);
  if (options->find("ttl") && !options->failed()) {
    if (const auto time = parse_ttl(ttl)) {
      cache.ttl = *time;
    } else {
      options->fail(invalid_field("prompt_cache_options.ttl",
                                  "`prompt_cache_options.ttl` is \"" + ttl.substr(0, 40) +
                                      "\"; it must be a time such as \"90s\", \"30m\" or \"12h\", "
                                      "at most 24h"));
    }
  }
  fields.fail_with(*options);
}

void read_retention(JsonFields& fields, CacheFields& cache) {
  std::string retention;
  fields.read("prompt_cache_retention", retention);
  if (retention == "24h") cache.ttl = std::max(cache.ttl, kLongestTtl);
}

}  // namespace

std::optional<std::chrono::seconds> parse_ttl(std::string_view text) {
  std::int64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || text.front() == '0' || number <= 0 || number > kLongestTtl.count())
    return std::nullopt;
  const std::string_view unit = text.substr(static_cast<std::size_t>(end - text.data()));
  std::int64_t seconds = 0;
  if (unit == "s") seconds = 1;
  if (unit == "m") seconds = 60;
  if (unit == "h") seconds = 3600;
  if (unit == "d") seconds = 24 * std::int64_t{3600};
  const std::chrono::seconds time(number * seconds);
  if (seconds == 0 || time > kLongestTtl) return std::nullopt;
  return time;
}

bool read_cache_breakpoint(JsonFields& part) {
  auto mark = part.object("prompt_cache_breakpoint");
  if (!mark) return false;
  std::string mode = "explicit";
  mark->read("mode", mode);
  if (!mark->failed() && mode != "explicit") {
    const std::string name = mark->full_name("mode");
    mark->fail(invalid_field(
        name, "`" + name + "` is \"" + mode.substr(0, 40) + "\"; it must be \"explicit\""));
  }
  part.fail_with(*mark);
  return !part.failed();
}

void count_breakpoints(JsonFields& fields, std::string_view list, std::size_t count,
                       CacheFields& cache) {
  if (count > kMaxBreakpoints) {
    fields.fail(invalid_field(std::string(list),
                              "`" + std::string(list) + "` has " + std::to_string(count) +
                                  " cache breakpoints; at most " + std::to_string(kMaxBreakpoints) +
                                  " are accepted"));
  }
  if (count > 0 && cache.ttl.count() == 0) cache.ttl = kDefaultTtl;
}

CacheFields read_cache_fields(JsonFields& fields) {
  CacheFields cache;
  fields.read("prompt_cache_key", cache.key);
  read_options(fields, cache);
  read_retention(fields, cache);
  return cache;
}

std::uint32_t kept_tokens(const CacheFields& cache, const ChatPrompt* prompt,
                          const std::vector<TokenId>& tokens, const TextCodec& codec) {
  if (!cache.keeps()) return 0;
  if (!cache.is_explicit && cache.breakpoints.empty())
    return static_cast<std::uint32_t>(tokens.size());
  if (cache.breakpoints.empty() || prompt == nullptr) return 0;
  const ContentBreakpoint& last = cache.breakpoints.back();
  if (last.message >= prompt->messages.size()) return 0;
  ChatPrompt begun = *prompt;
  auto& messages = begun.messages;
  messages.erase(messages.begin() + static_cast<std::ptrdiff_t>(last.message) + 1, messages.end());
  auto& content = messages.back()["content"];
  if (content.is_string()) content = content.get<std::string>().substr(0, last.bytes);
  begun.add_generation_prompt = false;
  begun.continue_final_message = true;
  const auto rendered = codec.encode_chat(begun);
  // A template that cannot end there, or refuses the beginning alone: the whole prompt has it.
  if (!rendered) return static_cast<std::uint32_t>(tokens.size());
  return static_cast<std::uint32_t>(common_prefix(*rendered, tokens));
}

}  // namespace thaw::coalescer
