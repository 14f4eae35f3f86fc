#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/text/jinja/value.h"

namespace thaw::text::jinja {

enum class TokenType {
  kData,  ///< text outside all tags
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenType type = TokenType::kEnd;
  std::string text;  ///< a string literal's with escapes resolved
  int line = 1;
  Int integer = 0;
  double number = 0;

  bool is_name(std::string_view name) const { return type == TokenType::kName && text == name; }
  bool is_operator(std::string_view op) const { return type == TokenType::kOperator && text == op; }
};

/// Jinja's lexer with trim_blocks and lstrip_blocks on and keep_trailing_newline off: whitespace
/// around tags is already settled in what comes out, comments are gone. Ends with kEnd.
/// Errors: TemplateError with line.
std::vector<Token> tokenize(std::string_view source);

}  // namespace thaw::text::jinja
