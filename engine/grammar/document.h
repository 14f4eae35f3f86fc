#pragma once

#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/grammar/grammar.h"

namespace thaw::grammar {

/// kInvalidArgument, for what is wrong with a document or with what it is used on.
inline Error wrong(const std::string& what) {
  return make_error(Errc::kInvalidArgument, "grammar: " + what);
}

/// The texts that a document asks for word by word, outside of schemas, patterns and grammars:
/// begin and end of tags, triggers, constant strings, tokens. Errors (kInvalidArgument): no JSON
/// object of type "structural_tag", too large, nested too deep.
Result<std::vector<std::string>> literal_texts(const std::string& document,
                                               const CompileLimits& limits);

}  // namespace thaw::grammar
