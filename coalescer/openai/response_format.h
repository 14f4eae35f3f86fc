#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "coalescer/openai/json_fields.h"

namespace thaw::coalescer {

enum class OutputKind : std::uint8_t {
  kText,  ///< anything
  kJsonObject,
  kJsonSchema,
  kRegex,
  kGrammar,  ///< EBNF with a rule `root`
  kChoice,
  kStructuralTag,
};

/// The form that a reply must have where it is no tool call.
struct OutputFormat {
  OutputKind kind = OutputKind::kText;
  nlohmann::ordered_json schema;  ///< of kJsonSchema; of kStructuralTag its `format`
  std::string pattern;  ///< of kRegex and kGrammar
  std::vector<std::string> choices;  ///< of kChoice, at least one
  std::string field;  ///< of the request that asked for it
};

/// Reads OpenAI's `response_format`, and vLLM's `structured_outputs` and `guided_json`,
/// `guided_regex`, `guided_choice`, `guided_grammar`. At most one of them may ask for a form; sets
/// `fields`' error otherwise.
OutputFormat read_output_format(JsonFields& fields);
/// The same with the Responses API's `text.format` in place of `response_format`.
OutputFormat read_text_format(JsonFields& fields);

}  // namespace thaw::coalescer
