#include "engine/text/jinja/parser.h"

#include <algorithm>
#include <initializer_list>
#include <unordered_map>
#include <utility>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/lexer.h"

namespace thaw::text::jinja {
namespace {

constexpr int kMaxNesting = 120;  // of brackets and blocks, as the parser descends
constexpr int kMaxTreeDepth = 400;  // of one expression, which long chains also make deep

class Parser {
 public:
  explicit Parser(std::string_view source) : tokens_(tokenize(source)) {}

  Template run() {
    Template result;
    result.body = parse_body({});
    result.symbols = std::move(symbols_);
    return result;
  }

 private:
  /// Counts how deep the parser stands while it lives.
  class Nesting {
   public:
    explicit Nesting(Parser& parser) : parser_(parser) {
      if (++parser.nesting_ > kMaxNesting) parser.fail("nested too deeply");
    }
    ~Nesting() { --parser_.nesting_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;

   private:
    Parser& parser_;
  };

  const Token& current() const { return tokens_[at_]; }
  const Token& ahead() const { return tokens_[std::min(at_ + 1, tokens_.size() - 1)]; }
  const Token& next() {
    const Token& token = tokens_[at_];
    if (at_ + 1 < tokens_.size()) ++at_;
    return token;
  }
  bool at_name(std::string_view name) const { return current().is_name(name); }
  bool at_operator(std::string_view op) const { return current().is_operator(op); }
  bool skip_name(std::string_view name) {
    if (!at_name(name)) return false;
    next();
    return true;
  }
  bool skip_operator(std::string_view op) {
    if (!at_operator(op)) return false;
    next();
    return true;
  }

  [[noreturn]] void fail(const std::string& message) const {
    throw TemplateError(message, current().line);
  }
  [[noreturn]] void fail_unexpected(const std::string& expected) const {
    fail("unexpected " + describe(current()) + ", expected " + expected);
  }
  static std::string describe(const Token& token) {
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
  void expect_operator(std::string_view op) {
    if (!skip_operator(op)) fail_unexpected("'" + std::string(op) + "'");
  }
  std::string expect_name() {
    if (current().type != TokenType::kName) fail_unexpected("a name");
    return next().text;
  }
  void expect_block_end() {
    if (current().type != TokenType::kBlockEnd) fail_unexpected("'%}'");
    next();
  }

  Symbol symbol(const std::string& name) {
    if (name == "loop") ++loop_uses_;
    if (name == "caller") ++caller_uses_;
    if (name == "varargs") ++varargs_uses_;
    if (name == "kwargs") ++kwargs_uses_;
    const auto [found, added] = symbol_ids_.emplace(name, static_cast<Symbol>(symbols_.size()));
    if (added) symbols_.push_back(name);
    return found->second;
  }

  ExprPtr make(ExprKind kind, int line) const {
    auto expr = std::make_unique<Expr>();
    expr->kind = kind;
    expr->line = line;
    return expr;
  }
  ExprPtr make(ExprKind kind, int line, ExprPtr first, ExprPtr second = nullptr) const {
    ExprPtr expr = make(kind, line);
    add_child(*expr, std::move(first));
    if (second != nullptr) add_child(*expr, std::move(second));
    return expr;
  }
  void add_child(Expr& parent, ExprPtr child) const {
    note_depth(parent, child.get());
    parent.children.push_back(std::move(child));
  }
  void note_depth(Expr& parent, const Expr* child) const {
    if (child == nullptr) return;
    parent.depth = std::max(parent.depth, child->depth + 1);
    if (parent.depth > kMaxTreeDepth) fail("an expression is nested too deeply");
  }
  ExprPtr make_const(Value value, int line) const {
    ExprPtr expr = make(ExprKind::kConst, line);
    expr->value = std::move(value);
    return expr;
  }

  // --- statements

  using Names = std::initializer_list<std::string_view>;

  /// Statements up to a tag named in `ends`, which is left with the name as the current token. An
  /// empty `ends` means the end of the template.
  Body parse_body(Names ends) {
    const Nesting nesting(*this);
    Body body;
    while (current().type != TokenType::kEnd) {
      const int line = current().line;
      if (current().type == TokenType::kData) {
        auto stmt = make_stmt(StmtKind::kData, line);
        stmt->text = Text(next().text, Origin::kTemplate);
        body.push_back(std::move(stmt));
      } else if (current().type == TokenType::kVariableBegin) {
        next();
        auto stmt = make_stmt(StmtKind::kOutput, line);
        stmt->expr = parse_tuple();
        if (current().type != TokenType::kVariableEnd) fail_unexpected("'}}'");
        next();
        body.push_back(std::move(stmt));
      } else {
        next();  // a block's begin: nothing else can stand here
        if (current().type != TokenType::kName) fail_unexpected("a tag name");
        if (std::find(ends.begin(), ends.end(), current().text) != ends.end()) return body;
        parse_statement(body);
        expect_block_end();
      }
    }
    if (ends.size() > 0) {
      fail("unexpected end of template, expected '" + std::string(*std::prev(ends.end())) + "'");
    }
    return body;
  }

  /// Statements up to `end`, whose name is consumed.
  Body parse_body_until(std::string_view end) {
    Body body = parse_body({end});
    next();
    return body;
  }

  static std::unique_ptr<Stmt> make_stmt(StmtKind kind, int line) {
    auto stmt = std::make_unique<Stmt>();
    stmt->kind = kind;
    stmt->line = line;
    return stmt;
  }

  void parse_statement(Body& body) {
    const int line = current().line;
    const std::string tag = next().text;
    if (tag == "print") {
      while (current().type != TokenType::kBlockEnd) {
        auto stmt = make_stmt(StmtKind::kOutput, line);
        stmt->expr = parse_expression();
        body.push_back(std::move(stmt));
        if (current().type != TokenType::kBlockEnd) expect_operator(",");
      }
      return;
    }
    if (tag == "if") return body.push_back(parse_if(line));
    if (tag == "for") return body.push_back(parse_for(line));
    if (tag == "set") return body.push_back(parse_set(line));
    if (tag == "macro") return body.push_back(parse_macro(line));
    if (tag == "call") return body.push_back(parse_call_block(line));
    if (tag == "filter") return body.push_back(parse_filter_block(line));
    if (tag == "with") return body.push_back(parse_with(line));
    if (tag == "generation") {
      auto stmt = make_stmt(StmtKind::kScope, line);
      expect_block_end();
      const int loops = std::exchange(loops_, 0);
      stmt->body = parse_body_until("endgeneration");
      loops_ = loops;
      return body.push_back(std::move(stmt));
    }
    if (tag == "break" || tag == "continue") {
      if (loops_ == 0) throw TemplateError("'" + tag + "' outside of a loop", line);
      body.push_back(make_stmt(tag == "break" ? StmtKind::kBreak : StmtKind::kContinue, line));
      return;
    }
    throw TemplateError("unknown or unsupported tag '" + tag + "'", line);
  }

  std::unique_ptr<Stmt> parse_if(int line) {
    auto stmt = make_stmt(StmtKind::kIf, line);
    while (true) {
      ExprPtr test = parse_tuple(false);
      expect_block_end();
      Body body = parse_body({"elif", "else", "endif"});
      stmt->branches.emplace_back(std::move(test), std::move(body));
      const std::string tag = next().text;
      if (tag == "elif") continue;
      if (tag == "else") {
        expect_block_end();
        stmt->otherwise = parse_body_until("endif");
      }
      return stmt;
    }
  }

  std::unique_ptr<Stmt> parse_for(int line) {
    auto stmt = make_stmt(StmtKind::kFor, line);
    stmt->target = parse_target(false);
    if (!skip_name("in")) fail_unexpected("'in'");
    stmt->expr = parse_tuple(false, "recursive");
    if (skip_name("if")) stmt->test = parse_expression();
    if (at_name("recursive")) fail("recursive loops are not supported");
    expect_block_end();
    ++loops_;
    const int loop_uses = loop_uses_;
    stmt->body = parse_body({"else", "endfor"});
    stmt->uses_loop = loop_uses_ > loop_uses;
    --loops_;
    if (next().text == "else") {
      expect_block_end();
      stmt->otherwise = parse_body_until("endfor");
    }
    return stmt;
  }

  std::unique_ptr<Stmt> parse_set(int line) {
    auto stmt = make_stmt(StmtKind::kSet, line);
    stmt->target = parse_target(true);
    if (skip_operator("=")) {
      stmt->expr = parse_tuple();
      return stmt;
    }
    stmt->kind = StmtKind::kSetBlock;
    if (at_operator("|")) stmt->expr = parse_filters(nullptr);
    expect_block_end();
    const int loops = std::exchange(loops_, 0);
    stmt->body = parse_body_until("endset");
    loops_ = loops;
    return stmt;
  }

  std::unique_ptr<Stmt> parse_macro(int line) {
    auto stmt = make_stmt(StmtKind::kMacro, line);
    stmt->signature.name = expect_name();
    stmt->symbol = symbol(stmt->signature.name);
    parse_signature(stmt->signature);
    expect_block_end();
    parse_function_body(*stmt, "endmacro");
    return stmt;
  }

  /// The body of a macro or call block, which breaks out of no loop around it.
  void parse_function_body(Stmt& stmt, std::string_view end) {
    const int loops = std::exchange(loops_, 0);
    const int caller_uses = caller_uses_;
    const int varargs_uses = varargs_uses_;
    const int kwargs_uses = kwargs_uses_;
    stmt.body = parse_body_until(end);
    stmt.signature.uses_caller = caller_uses_ > caller_uses;
    stmt.signature.uses_varargs = varargs_uses_ > varargs_uses;
    stmt.signature.uses_kwargs = kwargs_uses_ > kwargs_uses;
    loops_ = loops;
  }

  std::unique_ptr<Stmt> parse_call_block(int line) {
    auto stmt = make_stmt(StmtKind::kCallBlock, line);
    stmt->signature.name = "caller";
    if (at_operator("(")) parse_signature(stmt->signature);
    stmt->expr = parse_expression();
    if (stmt->expr->kind != ExprKind::kCall) throw TemplateError("expected call", line);
    expect_block_end();
    parse_function_body(*stmt, "endcall");
    return stmt;
  }

  std::unique_ptr<Stmt> parse_filter_block(int line) {
    auto stmt = make_stmt(StmtKind::kFilterBlock, line);
    stmt->expr = parse_filters(nullptr, true);
    expect_block_end();
    stmt->body = parse_body_until("endfilter");
    return stmt;
  }

  std::unique_ptr<Stmt> parse_with(int line) {
    auto stmt = make_stmt(StmtKind::kWith, line);
    while (current().type != TokenType::kBlockEnd) {
      if (!stmt->assignments.empty()) expect_operator(",");
      ExprPtr target = parse_target(false);
      expect_operator("=");
      stmt->assignments.emplace_back(std::move(target), parse_expression());
    }
    expect_block_end();
    stmt->body = parse_body_until("endwith");
    return stmt;
  }

  void parse_signature(Signature& signature) {
    expect_operator("(");
    while (!at_operator(")")) {
      if (!signature.parameters.empty()) expect_operator(",");
      const std::string name = expect_name();
      signature.parameters.emplace_back(symbol(name), name);
      if (skip_operator("=")) {
        signature.defaults.push_back(parse_expression());
      } else if (!signature.defaults.empty()) {
        fail("a parameter without default follows one with default");
      }
    }
    expect_operator(")");
  }

  /// What stands left of `=` or `in`: names, namespace attributes, tuples of them.
  ExprPtr parse_target(bool with_namespace) {
    const int line = current().line;
    std::vector<ExprPtr> targets;
    bool is_tuple = false;
    do {
      if (is_tuple && (at_name("in") || at_operator("=") || at_operator(")"))) break;
      targets.push_back(parse_single_target(with_namespace));
      is_tuple = is_tuple || at_operator(",");
    } while (skip_operator(","));
    if (!is_tuple) return std::move(targets.front());
    ExprPtr tuple = make(ExprKind::kTuple, line);
    for (ExprPtr& target : targets)
      add_child(*tuple, std::move(target));
    return tuple;
  }

  ExprPtr parse_single_target(bool with_namespace) {
    const Nesting nesting(*this);
    if (skip_operator("(")) {
      ExprPtr inner = parse_target(with_namespace);
      expect_operator(")");
      return inner;
    }
    const int line = current().line;
    const std::string name = expect_name();
    for (const char* reserved : {"true", "false", "none", "True", "False", "None"}) {
      if (name == reserved) throw TemplateError("can't assign to '" + name + "'", line);
    }
    ExprPtr target = make(ExprKind::kName, line);
    target->symbol = symbol(name);
    target->text = name;
    if (!with_namespace || !skip_operator(".")) return target;
    ExprPtr attribute = make(ExprKind::kAttribute, line, std::move(target));
    attribute->text = expect_name();
    return attribute;
  }

  // --- expressions, by rising precedence

  bool at_tuple_end(std::string_view extra_end) const {
    return current().type == TokenType::kVariableEnd || current().type == TokenType::kBlockEnd ||
           at_operator(")") || (!extra_end.empty() && at_name(extra_end));
  }

  ExprPtr parse_tuple(bool with_conditional = true, std::string_view extra_end = {},
                      bool in_parentheses = false) {
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

  ExprPtr parse_expression() {
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

  ExprPtr parse_or() {
    ExprPtr left = parse_and();
    while (at_name("or")) {
      const int line = next().line;
      left = make(ExprKind::kOr, line, std::move(left), parse_and());
    }
    return left;
  }

  ExprPtr parse_and() {
    ExprPtr left = parse_not();
    while (at_name("and")) {
      const int line = next().line;
      left = make(ExprKind::kAnd, line, std::move(left), parse_not());
    }
    return left;
  }

  ExprPtr parse_not() {
    if (!at_name("not")) return parse_compare();
    const Nesting nesting(*this);
    const int line = next().line;
    return make(ExprKind::kNot, line, parse_not());
  }

  /// The comparison that starts at the current token, consumed; empty when there is none.
  std::string take_comparison() {
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

  ExprPtr parse_compare() {
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

  ExprPtr binary(std::string op, int line, ExprPtr left, ExprPtr right) const {
    ExprPtr expr = make(ExprKind::kBinary, line, std::move(left), std::move(right));
    expr->text = std::move(op);
    return expr;
  }

  ExprPtr parse_sum() {
    ExprPtr left = parse_concat();
    while (at_operator("+") || at_operator("-")) {
      const Token& op = next();
      left = binary(op.text, op.line, std::move(left), parse_concat());
    }
    return left;
  }

  ExprPtr parse_concat() {
    const int line = current().line;
    ExprPtr first = parse_product();
    if (!at_operator("~")) return first;
    ExprPtr concat = make(ExprKind::kConcat, line, std::move(first));
    while (skip_operator("~"))
      add_child(*concat, parse_product());
    return concat;
  }

  ExprPtr parse_product() {
    ExprPtr left = parse_power();
    while (at_operator("*") || at_operator("/") || at_operator("//") || at_operator("%")) {
      const Token& op = next();
      left = binary(op.text, op.line, std::move(left), parse_power());
    }
    return left;
  }

  ExprPtr parse_power() {
    ExprPtr left = parse_unary(true);
    while (at_operator("**")) {
      const Token& op = next();
      left = binary(op.text, op.line, std::move(left), parse_unary(true));
    }
    return left;
  }

  ExprPtr parse_unary(bool with_filters) {
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

  ExprPtr parse_primary() {
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

  ExprPtr parse_list(int line) {
    ExprPtr list = make(ExprKind::kList, line);
    while (!at_operator("]")) {
      add_child(*list, parse_expression());
      if (!at_operator("]")) expect_operator(",");
    }
    next();
    return list;
  }

  ExprPtr parse_dict(int line) {
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

  ExprPtr parse_postfix(ExprPtr expr) {
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

  ExprPtr parse_subscript(ExprPtr object, int line) {
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

  ExprPtr parse_call(ExprPtr callee, int line) {
    ExprPtr call = make(ExprKind::kCall, line, std::move(callee));
    parse_arguments(*call);
    return call;
  }

  void parse_arguments(Expr& call) {
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

  ExprPtr parse_filters_and_tests(ExprPtr expr) {
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

  std::string parse_dotted_name() {
    std::string name = expect_name();
    while (skip_operator("."))
      name += "." + expect_name();
    return name;
  }

  /// `input | a | b(...)`. `inline_start`: the first filter stands without a bar.
  ExprPtr parse_filters(ExprPtr input, bool inline_start = false) {
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

  bool at_test_argument() const {
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

  ExprPtr parse_test(ExprPtr input) {
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

  std::vector<Token> tokens_;
  std::size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;  ///< for-loops around the current statement, within the same function body
  int loop_uses_ = 0;  ///< times the name was met so far; likewise below
  int caller_uses_ = 0;
  int varargs_uses_ = 0;
  int kwargs_uses_ = 0;
  std::vector<std::string> symbols_;
  std::unordered_map<std::string, Symbol> symbol_ids_;
};

}  // namespace

Template parse(std::string_view source) {
  return Parser(source).run();
}

}  // namespace thaw::text::jinja
