#include "engine/text/jinja/parser.h"

#include <algorithm>
#include <initializer_list>
#include <utility>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/expression_parser.h"

namespace thaw::text::jinja {
namespace {

/// Statements, on top of expressions.
class Parser : private ExpressionParser {
 public:
  using ExpressionParser::ExpressionParser;

  Template run() {
    Template result;
    result.body = parse_body({});
    result.symbols = std::move(symbols_);
    return result;
  }

 private:
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

  int loops_ = 0;  ///< for-loops around the current statement, within the same function body
};

}  // namespace

Template parse(std::string_view source) {
  return Parser(source).run();
}

}  // namespace thaw::text::jinja
