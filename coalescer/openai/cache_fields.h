#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "coalescer/openai/text_codec.h"

namespace thaw::coalescer {

class JsonFields;

/// The end of a content part that was marked as one.
struct ContentBreakpoint {
  std::size_t message = 0;
  std::size_t bytes = 0;  ///< of the message's joined text, up to there
};

/// What a request says of its prompt's KV, in the words of OpenAI's API: `prompt_cache_key`,
/// `prompt_cache_options`, `prompt_cache_breakpoint`, `prompt_cache_retention`.
struct CacheFields {
  std::string key;  ///< prompts of one key that grow replace one another; empty: none
  bool is_explicit = false;  ///< only what breakpoints end is kept
  std::chrono::seconds ttl{0};  ///< how long it is kept; 0: as long as there is room
  bool prewarm = false;  ///< the prompt is computed, nothing is generated
  std::vector<ContentBreakpoint> breakpoints;  ///< in the order of the text

  /// Whether anything of the prompt is to be kept from eviction.
  bool keeps() const { return ttl.count() > 0; }
};

/// Reads them, except for the breakpoints, which are found where the text of parts is joined.
/// Errors set `fields`'.
CacheFields read_cache_fields(JsonFields& fields);

/// Whether a content part ends what is to be kept; an error of its mark is `part`'s.
bool read_cache_breakpoint(JsonFields& part);
/// `list` has `count` breakpoints. Sets the time that
/// they are kept where the request says none; too many are `fields`' error.
void count_breakpoints(JsonFields& fields, std::string_view list, std::size_t count,
                       CacheFields& cache);

/// "30m", "12h", "90s", "2d"; nullopt where it is none of them or beyond a day.
std::optional<std::chrono::seconds> parse_ttl(std::string_view text);

/// Up to which of the prompt's tokens its KV is to be kept: to the last breakpoint, or all of them.
/// 0: nothing. `tokens` is what `prompt` rendered to; slow for long ones.
std::uint32_t kept_tokens(const CacheFields& cache, const ChatPrompt* prompt,
                          const std::vector<TokenId>& tokens, const TextCodec& codec);

}  // namespace thaw::coalescer
