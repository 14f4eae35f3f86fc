#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/jinja/print.h"
#include "engine/text/jinja/render_state.h"

// What the expressions of a template are worth.
namespace thaw::text::jinja {

Value Interpreter::evaluate(const Expr& expr) {
  const Depth depth(depth_);
  charge(1);
  line_ = expr.line;
  switch (expr.kind) {
    case ExprKind::kConst:
      return expr.value;
    case ExprKind::kName:
      return look_up(expr);
    case ExprKind::kList:
      return Value::list(evaluate_all(expr));
    case ExprKind::kTuple:
      return Value::tuple(evaluate_all(expr));
    case ExprKind::kDict:
      return evaluate_dict(expr);
    case ExprKind::kAttribute:
      return get_attribute(evaluate(*expr.children[0]), expr.text);
    case ExprKind::kItem: {
      const Value object = evaluate(*expr.children[0]);
      return get_item(object, evaluate(*expr.children[1]));
    }
    case ExprKind::kSlice:
      return evaluate_slice(expr);
    case ExprKind::kCall: {
      const Value callee = evaluate(*expr.children[0]);
      return call(callee, evaluate_arguments(expr));
    }
    case ExprKind::kFilter:
      return call_filter(expr.text, evaluate(*expr.children[0]), evaluate_arguments(expr));
    case ExprKind::kTest:
      return Value::boolean(
          call_test(expr.text, evaluate(*expr.children[0]), evaluate_arguments(expr)));
    case ExprKind::kNot:
      return Value::boolean(!evaluate(*expr.children[0]).truthy());
    case ExprKind::kAnd:
    case ExprKind::kOr: {
      Value left = evaluate(*expr.children[0]);
      if (left.truthy() == (expr.kind == ExprKind::kOr)) return left;
      return evaluate(*expr.children[1]);
    }
    case ExprKind::kNegate:
      return negate(evaluate(*expr.children[0]));
    case ExprKind::kPositive:
      return evaluate_positive(expr);
    case ExprKind::kBinary:
      return evaluate_binary(expr);
    case ExprKind::kConcat: {
      Text text;
      for (const ExprPtr& child : expr.children)
        append_text(text, evaluate(*child));
      charge(text.size() / 64);
      return Value::text(std::move(text));
    }
    case ExprKind::kCompare:
      return Value::boolean(evaluate_compare(expr));
    case ExprKind::kConditional:
      if (evaluate(*expr.children[0]).truthy()) return evaluate(*expr.children[1]);
      if (expr.children[2] != nullptr) return evaluate(*expr.children[2]);
      return Value::undefined("the inline if-expression on line " + std::to_string(expr.line) +
                              " evaluated to false and no else section was defined.");
  }
  return {};
}

std::vector<Value> Interpreter::evaluate_all(const Expr& expr) {
  std::vector<Value> values;
  values.reserve(expr.children.size());
  for (const ExprPtr& child : expr.children)
    values.push_back(evaluate(*child));
  return values;
}

Value Interpreter::evaluate_dict(const Expr& expr) {
  auto dict = std::make_shared<Dict>();
  for (std::size_t i = 0; i + 1 < expr.children.size(); i += 2) {
    Value key = evaluate(*expr.children[i]);
    dict->set(std::move(key), evaluate(*expr.children[i + 1]));
  }
  return Value(std::shared_ptr<const Dict>(std::move(dict)));
}

Value Interpreter::evaluate_slice(const Expr& expr) {
  const Value object = evaluate(*expr.children[0]);
  Value bounds[3];
  for (std::size_t i = 0; i < 3; ++i) {
    if (expr.children[i + 1] != nullptr) bounds[i] = evaluate(*expr.children[i + 1]);
  }
  charge(size_of(object) / 64);
  return get_slice(object, bounds[0], bounds[1], bounds[2]);
}

Value Interpreter::evaluate_positive(const Expr& expr) {
  Value value = evaluate(*expr.children[0]);
  require_defined(value);
  if (!value.is_number()) fail_type("bad operand type for unary +", value);
  return value.is<bool>() ? Value::integer(value.to_int()) : value;
}

Value Interpreter::evaluate_binary(const Expr& expr) {
  const Value left = evaluate(*expr.children[0]);
  const Value right = evaluate(*expr.children[1]);
  Value result = expr.text == "+" ? add(left, right) : arithmetic(expr.text, left, right);
  charge(size_of(result) / 64);
  return result;
}

bool Interpreter::evaluate_compare(const Expr& expr) {
  Value left = evaluate(*expr.children[0]);
  for (std::size_t i = 0; i < expr.operators.size(); ++i) {
    Value right = evaluate(*expr.children[i + 1]);
    const std::string& op = expr.operators[i];
    bool holds = false;
    if (op == "==" || op == "!=") {
      charge(std::min(size_of(left), size_of(right)) / 64);
      holds = equal(left, right) == (op == "==");
    } else if (op == "in" || op == "not in") {
      charge((size_of(left) + size_of(right)) / 64);
      holds = contains(right, left) == (op == "in");
    } else {
      charge(std::min(size_of(left), size_of(right)) / 64);
      const int order = compare(left, right, op.c_str());
      holds = op == "<" ? order < 0 : op == "<=" ? order <= 0 : op == ">" ? order > 0 : order >= 0;
    }
    if (!holds) return false;
    left = std::move(right);
  }
  return true;
}

Args Interpreter::evaluate_arguments(const Expr& expr) {
  Args args;
  if (expr.arguments == nullptr) return args;
  const CallArguments& given = *expr.arguments;
  args.positional.reserve(given.positional.size());
  for (const ExprPtr& argument : given.positional)
    args.positional.push_back(evaluate(*argument));
  for (const auto& [name, argument] : given.named) {
    args.named.emplace_back(name, evaluate(*argument));
  }
  if (given.star != nullptr) {
    const auto items = iterate(evaluate(*given.star));
    args.positional.insert(args.positional.end(), items.begin(), items.end());
  }
  if (given.double_star != nullptr) {
    const Value mapping = evaluate(*given.double_star);
    if (mapping.as_dict() == nullptr) fail_type("argument after ** must be a mapping", mapping);
    for (const auto& [key, value] : mapping.as_dict()->entries) {
      if (!key.is_string()) fail_type("keywords must be strings", key);
      args.named.emplace_back(key.as_text()->bytes(), value);
    }
  }
  return args;
}

Value Interpreter::call(const Value& callee, const Args& args) {
  require_defined(callee);
  const auto* callable = std::get_if<std::shared_ptr<const Callable>>(&callee.storage());
  if (callable == nullptr) {
    throw TemplateError("'" + callee.type_name() + "' object is not callable");
  }
  charge(1);
  const int line = line_;
  Value result = (*callable)->call(*this, args);
  line_ = line;
  charge(size_of(result) / 64);
  return result;
}

Value Interpreter::apply_filters(const Expr& filter, const Value& text) {
  const Depth depth(depth_);
  const ExprPtr& inner = filter.children[0];
  const Value input = inner == nullptr ? text : apply_filters(*inner, text);
  line_ = filter.line;
  return call_filter(filter.text, input, evaluate_arguments(filter));
}

}  // namespace thaw::text::jinja
