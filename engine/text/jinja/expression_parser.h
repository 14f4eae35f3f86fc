#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/text/jinja/ast.h"
#include "engine/text/jinja/lexer.h"

namespace thaw::text::jinja {

/// The lower half of the parser: the tokens, the names met so far, and expressions by precedence.
/// Errors: TemplateError with line.
class ExpressionParser {
 public:
  explicit ExpressionParser(std::string_view source) : tokens_(tokenize(source)) {}

 protected:
  /// Counts how deep the parser stands while it lives.
  class Nesting {
   public:
    explicit Nesting(ExpressionParser& parser);
    ~Nesting() { --parser_.nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    ExpressionParser& parser_;
  };

  const Token& current() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  const Token& next();
  bool at_name(std::string_view name) const { return current().is_name(name); }
  bool at_operator(std::string_view op) const { return current().is_operator(op); }
  bool skip_name(std::string_view name);
  bool skip_operator(std::string_view op);
  [[noreturn]] void fail(const std::string& message) const;
  [[noreturn]] void fail_unexpected(const std::string& expected) const;
  static std::string describe(const Token& token);
  void expect_operator(std::string_view op);
  std::string expect_name();
  void expect_block_end();
  Symbol symbol(const std::string& name);
  ExprPtr make(ExprKind kind, int line) const;
  ExprPtr make(ExprKind kind, int line, ExprPtr first, ExprPtr second = nullptr) const;
  void add_child(Expr& parent, ExprPtr child) const;
  void note_depth(Expr& parent, const Expr* child) const;
  ExprPtr make_const(Value value, int line) const;
  bool at_tuple_end(std::string_view extra_end) const;
  ExprPtr parse_tuple(bool with_conditional = true, std::string_view extra_end = {},
                      bool in_parentheses = false);
  ExprPtr parse_expression();
  ExprPtr parse_or();
  ExprPtr parse_and();
  ExprPtr parse_not();
  /// The comparison that starts at the current token, consumed; empty when there is none.
  std::string take_comparison();
  ExprPtr parse_compare();
  ExprPtr binary(std::string op, int line, ExprPtr left, ExprPtr right) const;
  ExprPtr parse_sum();
  ExprPtr parse_concat();
  ExprPtr parse_product();
  ExprPtr parse_power();
  ExprPtr parse_unary(bool with_filters);
  ExprPtr parse_primary();
  ExprPtr parse_list(int line);
  ExprPtr parse_dict(int line);
  ExprPtr parse_postfix(ExprPtr expr);
  ExprPtr parse_subscript(ExprPtr object, int line);
  ExprPtr parse_call(ExprPtr callee, int line);
  void parse_arguments(Expr& call);
  ExprPtr parse_filters_and_tests(ExprPtr expr);
  std::string parse_dotted_name();
  /// `input | a | b(...)`. `inline_start`: the first filter stands without a bar.
  ExprPtr parse_filters(ExprPtr input, bool inline_start = false);
  bool at_test_argument() const;
  ExprPtr parse_test(ExprPtr input);

  int loop_uses_ = 0;  ///< times the name was met so far; likewise below
  int caller_uses_ = 0;
  int varargs_uses_ = 0;
  int kwargs_uses_ = 0;
  std::vector<std::string> symbols_;

 private:
  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int nesting_ = 0;
  std::unordered_map<std::string, Symbol> symbol_ids_;
};

}  // namespace thaw::text::jinja
