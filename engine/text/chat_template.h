#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/base/result.h"

namespace thaw::text {

/// A piece of a rendered prompt.
struct RenderedSpan {
  std::string text;
  bool from_template = false;  ///< written by the template, not taken from a message
};

struct RenderOptions {
  /// Reasoning that a message has as reasoning_content, thinking or reasoning is shown under the
  /// first two names, as transformers does it.
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  nlohmann::ordered_json tools;  ///< null: none
  bool add_generation_prompt = true;
  nlohmann::ordered_json extra = nlohmann::ordered_json::object();  ///< chat_template_kwargs
  std::string bos_token;
  std::string eos_token;
  /// For strftime_now; injected so that renders can be repeated. Seconds since the epoch, local
  /// time UTC.
  std::int64_t now_unix_seconds = 0;
  /// Budget against hostile templates and inputs: about one per node visited, item walked, or 64
  /// bytes copied. A real template over a long conversation takes some ten thousand.
  std::size_t max_work = 5'000'000;
};

/// A model's Jinja chat template, parsed once; of a model that has one called tool_use for requests
/// with tools, both. Rendering follows Python's Jinja2 as transformers
/// sets it up (trim_blocks, lstrip_blocks, loop controls, sandbox, tojson without ASCII escaping).
/// Thread-safe.
class ChatTemplate {
 public:
  /// `tool_source`: the template for requests with tools; empty: the same. Errors:
  /// kInvalidArgument for a syntax error, with line.
  static Result<std::unique_ptr<ChatTemplate>> parse(const std::string& source,
                                                     const std::string& tool_source = {});
  ~ChatTemplate();

  /// Spans in order; their texts joined are the prompt. Errors: raise_exception (kInvalidArgument
  /// with exactly the template's own message); undefined operations, too much work, too deep or
  /// too large values (kInvalidArgument, with line). Spans of both kinds alternate.
  Result<std::vector<RenderedSpan>> render(const RenderOptions& options) const;

  /// As it was parsed; of two, both joined.
  const std::string& source() const;

 private:
  struct Impl;
  explicit ChatTemplate(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace thaw::text
