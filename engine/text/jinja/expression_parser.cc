#include "engine/text/jinja/expression_parser.h"

#include <utility>

#include "engine/text/jinja/error.h"

namespace thaw::text::jinja {
namespace {

constexpr int kMaxNesting = 120;  // of brackets and blocks, as the parser descends
constexpr int kMaxTreeDepth = 400;  // of one expression, which long chains also make deep

}  // namespace

ExpressionParser::Nesting::Nesting(ExpressionParser& parser) : parser_(parser) {
  if (parser.nesting_ >= kMaxNesting) parser.fail("nested too deeply");
  ++parser.nesting_;
}

const Token& ExpressionParser::next() {
  const Token& token = tokens_[at_];
  if (at_ + 1 < tokens_.size()) ++at_;
  return token;
}

bool ExpressionParser::skip_name(std::string_view name) {
  if (!at_name(name)) return false;
  next();
  return true;
}

bool ExpressionParser::skip_operator(std::string_view op) {
  if (!at_operator(op)) return false;
  next();
  return true;
}

void ExpressionParser::fail(const std::string& message) const {
  throw TemplateError(message, current().line);
}

void ExpressionParser::fail_unexpected(const std::string& expected) const {
  fail("unexpected " + describe(current()) + ", expected " + expected);
}

std::string ExpressionParser::describe(const Token& token) {
  switch (token.type) {
    case TokenType::kEnd:
      return "end of template";
    case TokenType::kVariableEnd:
      return "'}}'";
    case TokenType::kBlockEnd:
      return "'%}'";
    case TokenType::kString:
      return "a string";
    case TokenType::kFloat:
      return "a number";
    default:
      return "'" + token.text + "'";
  }
}

void ExpressionParser::expect_operator(std::string_view op) {
  if (!skip_operator(op)) fail_unexpected("'" + std::string(op) + "'");
}

std::string ExpressionParser::expect_name() {
  if (current().type != TokenType::kName) fail_unexpected("a name");
  return next().text;
}

void ExpressionParser::expect_block_end() {
  if (current().type != TokenType::kBlockEnd) fail_unexpected("'%}'");
  next();
}

Symbol ExpressionParser::symbol(const std::string& name) {
  if (name == "loop") ++loop_uses_;
  if (name == "caller") ++caller_uses_;
  if (name == "varargs") ++varargs_uses_;
  if (name == "kwargs") ++kwargs_uses_;
  const auto [found, added] = symbol_ids_.emplace(name, static_cast<Symbol>(symbols_.size()));
  if (added) symbols_.push_back(name);
  return found->second;
}

ExprPtr ExpressionParser::make(ExprKind kind, int line) const {
  auto expr = std::make_unique<Expr>();
  expr->kind = kind;
  expr->line = line;
  return expr;
}

ExprPtr ExpressionParser::make(ExprKind kind, int line, ExprPtr first, ExprPtr second) const {
  ExprPtr expr = make(kind, line);
  add_child(*expr, std::move(first));
  if (second != nullptr) add_child(*expr, std::move(second));
  return expr;
}

void ExpressionParser::add_child(Expr& parent, ExprPtr child) const {
  note_depth(parent, child.get());
  parent.children.push_back(std::move(child));
}

void ExpressionParser::note_depth(Expr& parent, const Expr* child) const {
  if (child == nullptr) return;
  parent.depth = std::max(parent.depth, child->depth + 1);
  if (parent.depth > kMaxTreeDepth) fail("an expression is nested too deeply");
}

ExprPtr ExpressionParser::make_const(Value value, int line) const {
  ExprPtr expr = make(ExprKind::kConst, line);
  expr->value = std::move(value);
  return expr;
}

bool ExpressionParser::at_tuple_end(std::string_view extra_end) const {
  return current().type == TokenType::kVariableEnd || current().type == TokenType::kBlockEnd ||
         at_operator(")") || (!extra_end.empty() && at_name(extra_end));
}

ExprPtr ExpressionParser::parse_tuple(bool with_conditional, std::string_view extra_end,
                                      bool in_parentheses) {
  const int line = current().line;
  std::vector<ExprPtr> items;
  bool is_tuple = false;
  while (!at_tuple_end(extra_end)) {
    items.push_back(with_conditional ? parse_expression() : parse_or());
    if (!at_operator(",")) break;
    next();
    is_tuple = true;
  }
  if (!is_tuple) {
    if (!items.empty()) return std::move(items.front());
    if (!in_parentheses) fail_unexpected("an expression");
  }
  ExprPtr tuple = make(ExprKind::kTuple, line);
  for (ExprPtr& item : items)
    add_child(*tuple, std::move(item));
  return tuple;
}

ExprPtr ExpressionParser::parse_expression() {
  const Nesting nesting(*this);
  int line = current().line;
  ExprPtr expr = parse_or();
  while (skip_name("if")) {
    ExprPtr test = parse_or();
    ExprPtr otherwise = skip_name("else") ? parse_expression() : nullptr;
    ExprPtr conditional = make(ExprKind::kConditional, line, std::move(test), std::move(expr));
    add_child(*conditional, std::move(otherwise));
    expr = std::move(conditional);
    line = current().line;
  }
  return expr;
}

ExprPtr ExpressionParser::parse_or() {
  ExprPtr left = parse_and();
  while (at_name("or")) {
    const int line = next().line;
    left = make(ExprKind::kOr, line, std::move(left), parse_and());
  }
  return left;
}

ExprPtr ExpressionParser::parse_and() {
  ExprPtr left = parse_not();
  while (at_name("and")) {
    const int line = next().line;
    left = make(ExprKind::kAnd, line, std::move(left), parse_not());
  }
  return left;
}

ExprPtr ExpressionParser::parse_not() {
  if (!at_name("not")) return parse_compare();
  const Nesting nesting(*this);
  const int line = next().line;
  return make(ExprKind::kNot, line, parse_not());
}

std::string ExpressionParser::take_comparison() {
  for (const char* op : {"==", "!=", "<", "<=", ">", ">="}) {
    if (skip_operator(op)) return op;
  }
  if (skip_name("in")) return "in";
  if (at_name("not") && ahead().is_name("in")) {
    next();
    next();
    return "not in";
  }
  return {};
}

ExprPtr ExpressionParser::parse_compare() {
  const int line = current().line;
  ExprPtr first = parse_sum();
  std::string op = take_comparison();
  if (op.empty()) return first;
  ExprPtr compare = make(ExprKind::kCompare, line, std::move(first));
  for (; !op.empty(); op = take_comparison()) {
    compare->operators.push_back(op);
    add_child(*compare, parse_sum());
  }
  return compare;
}

ExprPtr ExpressionParser::binary(std::string op, int line, ExprPtr left, ExprPtr right) const {
  ExprPtr expr = make(ExprKind::kBinary, line, std::move(left), std::move(right));
  expr->text = std::move(op);
  return expr;
}

ExprPtr ExpressionParser::parse_sum() {
  ExprPtr left = parse_concat();
  while (at_operator("+") || at_operator("-")) {
    const Token& op = next();
    left = binary(op.text, op.line, std::move(left), parse_concat());
  }
  return left;
}

ExprPtr ExpressionParser::parse_concat() {
  const int line = current().line;
  ExprPtr first = parse_product();
  if (!at_operator("~")) return first;
  ExprPtr concat = make(ExprKind::kConcat, line, std::move(first));
  while (skip_operator("~"))
    add_child(*concat, parse_product());
  return concat;
}

ExprPtr ExpressionParser::parse_product() {
  ExprPtr left = parse_power();
  while (at_operator("*") || at_operator("/") || at_operator("//") || at_operator("%")) {
    const Token& op = next();
    left = binary(op.text, op.line, std::move(left), parse_power());
  }
  return left;
}

ExprPtr ExpressionParser::parse_power() {
  ExprPtr left = parse_unary(true);
  while (at_operator("**")) {
    const Token& op = next();
    left = binary(op.text, op.line, std::move(left), parse_unary(true));
  }
  return left;
}

ExprPtr ExpressionParser::parse_unary(bool with_filters) {
  const Nesting nesting(*this);
  const int line = current().line;
  ExprPtr expr;
  if (skip_operator("-")) {
    expr = make(ExprKind::kNegate, line, parse_unary(false));
  } else if (skip_operator("+")) {
    expr = make(ExprKind::kPositive, line, parse_unary(false));
  } else {
    expr = parse_primary();
  }
  expr = parse_postfix(std::move(expr));
  return with_filters ? parse_filters_and_tests(std::move(expr)) : std::move(expr);
}

ExprPtr ExpressionParser::parse_primary() {
  const int line = current().line;
  switch (current().type) {
    case TokenType::kName: {
      const std::string name = next().text;
      if (name == "true" || name == "True") return make_const(Value::boolean(true), line);
      if (name == "false" || name == "False") return make_const(Value::boolean(false), line);
      if (name == "none" || name == "None") return make_const(Value(), line);
      ExprPtr expr = make(ExprKind::kName, line);
      expr->symbol = symbol(name);
      expr->text = name;
      return expr;
    }
    case TokenType::kString: {
      std::string text;
      while (current().type == TokenType::kString)
        text += next().text;
      return make_const(Value::text(std::move(text), Origin::kTemplate), line);
    }
    case TokenType::kInteger:
      return make_const(Value::integer(next().integer), line);
    case TokenType::kFloat:
      return make_const(Value::real(next().number), line);
    default:
      break;
  }
  if (skip_operator("(")) {
    ExprPtr expr = parse_tuple(true, {}, true);
    expect_operator(")");
    return expr;
  }
  if (skip_operator("[")) return parse_list(line);
  if (skip_operator("{")) return parse_dict(line);
  fail_unexpected("an expression");
}

ExprPtr ExpressionParser::parse_list(int line) {
  ExprPtr list = make(ExprKind::kList, line);
  while (!at_operator("]")) {
    add_child(*list, parse_expression());
    if (!at_operator("]")) expect_operator(",");
  }
  next();
  return list;
}

ExprPtr ExpressionParser::parse_dict(int line) {
  ExprPtr dict = make(ExprKind::kDict, line);
  while (!at_operator("}")) {
    add_child(*dict, parse_expression());
    expect_operator(":");
    add_child(*dict, parse_expression());
    if (!at_operator("}")) expect_operator(",");
  }
  next();
  return dict;
}

ExprPtr ExpressionParser::parse_postfix(ExprPtr expr) {
  while (true) {
    const int line = current().line;
    if (skip_operator(".")) {
      if (current().type == TokenType::kInteger) {
        ExprPtr index = make_const(Value::integer(next().integer), line);
        expr = make(ExprKind::kItem, line, std::move(expr), std::move(index));
      } else {
        expr = make(ExprKind::kAttribute, line, std::move(expr));
        expr->text = expect_name();
      }
    } else if (skip_operator("[")) {
      expr = parse_subscript(std::move(expr), line);
    } else if (at_operator("(")) {
      expr = parse_call(std::move(expr), line);
    } else {
      return expr;
    }
  }
}

ExprPtr ExpressionParser::parse_subscript(ExprPtr object, int line) {
  ExprPtr start;
  if (!at_operator(":")) {
    start = parse_expression();
    if (skip_operator("]")) {
      return make(ExprKind::kItem, line, std::move(object), std::move(start));
    }
  }
  ExprPtr slice = make(ExprKind::kSlice, line, std::move(object));
  add_child(*slice, std::move(start));
  for (int part = 0; part < 2; ++part) {
    ExprPtr bound;
    if (skip_operator(":") && !at_operator(":") && !at_operator("]")) bound = parse_expression();
    add_child(*slice, std::move(bound));
  }
  expect_operator("]");
  return slice;
}

ExprPtr ExpressionParser::parse_call(ExprPtr callee, int line) {
  ExprPtr call = make(ExprKind::kCall, line, std::move(callee));
  parse_arguments(*call);
  return call;
}

void ExpressionParser::parse_arguments(Expr& call) {
  call.arguments = std::make_unique<CallArguments>();
  CallArguments& arguments = *call.arguments;
  expect_operator("(");
  while (!at_operator(")")) {
    ExprPtr expr;
    if (at_operator("*") && arguments.star == nullptr && arguments.double_star == nullptr) {
      next();
      expr = parse_expression();
      note_depth(call, expr.get());
      arguments.star = std::move(expr);
    } else if (at_operator("**") && arguments.double_star == nullptr) {
      next();
      expr = parse_expression();
      note_depth(call, expr.get());
      arguments.double_star = std::move(expr);
    } else if (current().type == TokenType::kName && ahead().is_operator("=") &&
               arguments.double_star == nullptr) {
      std::string name = next().text;
      next();
      expr = parse_expression();
      note_depth(call, expr.get());
      arguments.named.emplace_back(std::move(name), std::move(expr));
    } else {
      if (!arguments.named.empty() || arguments.star != nullptr ||
          arguments.double_star != nullptr) {
        fail("a positional argument follows a named one");
      }
      expr = parse_expression();
      note_depth(call, expr.get());
      arguments.positional.push_back(std::move(expr));
    }
    if (!at_operator(")")) expect_operator(",");
  }
  next();
}

ExprPtr ExpressionParser::parse_filters_and_tests(ExprPtr expr) {
  while (true) {
    if (at_operator("|")) {
      expr = parse_filters(std::move(expr));
    } else if (at_name("is")) {
      expr = parse_test(std::move(expr));
    } else if (at_operator("(")) {
      expr = parse_call(std::move(expr), current().line);
    } else {
      return expr;
    }
  }
}

std::string ExpressionParser::parse_dotted_name() {
  std::string name = expect_name();
  while (skip_operator("."))
    name += "." + expect_name();
  return name;
}

ExprPtr ExpressionParser::parse_filters(ExprPtr input, bool inline_start) {
  while (inline_start || at_operator("|")) {
    if (!inline_start) next();
    inline_start = false;
    const int line = current().line;
    ExprPtr filter = make(ExprKind::kFilter, line);
    filter->text = parse_dotted_name();
    add_child(*filter, std::move(input));
    if (at_operator("(")) parse_arguments(*filter);
    input = std::move(filter);
  }
  return input;
}

bool ExpressionParser::at_test_argument() const {
  switch (current().type) {
    case TokenType::kName:
      return !at_name("else") && !at_name("or") && !at_name("and");
    case TokenType::kString:
    case TokenType::kInteger:
    case TokenType::kFloat:
      return true;
    default:
      return at_operator("[") || at_operator("{");
  }
}

ExprPtr ExpressionParser::parse_test(ExprPtr input) {
  const int line = next().line;
  const bool negated = skip_name("not");
  ExprPtr test = make(ExprKind::kTest, line, std::move(input));
  test->text = parse_dotted_name();
  if (at_operator("(")) {
    parse_arguments(*test);
  } else if (at_test_argument()) {
    if (at_name("is")) fail("tests cannot be chained with 'is'");
    const Nesting nesting(*this);
    ExprPtr argument = parse_postfix(parse_primary());
    note_depth(*test, argument.get());
    test->arguments = std::make_unique<CallArguments>();
    test->arguments->positional.push_back(std::move(argument));
  }
  return negated ? make(ExprKind::kNot, line, std::move(test)) : std::move(test);
}
}  // namespace thaw::text::jinja
