#include "engine/grammar/document.h"

#include <simdjson.h>

#include <string_view>

namespace thaw::grammar {
namespace {

using simdjson::dom::element;

/// Members whose value is no part of the tree of formats.
bool is_opaque(std::string_view key) {
  return key == "json_schema" || key == "pattern" || key == "grammar";
}

/// REQUIRES: the parser has bounded the depth.
void collect(const element& value, std::vector<std::string>& texts) {
  if (value.is_string()) {
    texts.emplace_back(value.get_string().value_unsafe());
  } else if (value.is_array()) {
    const simdjson::dom::array items = value.get_array().value_unsafe();
    for (const element item : items)
      collect(item, texts);
  } else if (value.is_object()) {
    const simdjson::dom::object members = value.get_object().value_unsafe();
    for (const auto member : members)
      if (!is_opaque(member.key)) collect(member.value, texts);
  }
}

}  // namespace

Result<std::vector<std::string>> literal_texts(const std::string& document,
                                               const CompileLimits& limits) {
  if (document.size() > limits.document_bytes)
    return wrong("the document has " + std::to_string(document.size()) + " bytes; at most " +
                 std::to_string(limits.document_bytes) + " are right");
  simdjson::dom::parser parser;
  if (parser.allocate(document.size() + 1, static_cast<std::size_t>(limits.depth)) !=
      simdjson::SUCCESS)
    return wrong("the document finds no memory");
  element root;
  if (const auto failed = parser.parse(document).get(root); failed != simdjson::SUCCESS) {
    if (failed == simdjson::DEPTH_ERROR)
      return wrong("the document nests deeper than " + std::to_string(limits.depth));
    return wrong(std::string("the document is not JSON: ") + simdjson::error_message(failed));
  }
  std::string_view type;
  if (root["type"].get_string().get(type) != simdjson::SUCCESS || type != "structural_tag")
    return wrong(R"(the document is not an object of "type": "structural_tag")");
  std::vector<std::string> texts;
  collect(root, texts);
  return texts;
}

}  // namespace thaw::grammar
