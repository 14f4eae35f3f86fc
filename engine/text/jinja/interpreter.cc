#include "engine/text/jinja/interpreter.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/print.h"
#include "engine/text/jinja/runtime.h"

namespace thaw::text::jinja {
namespace {

constexpr int kMaxCallDepth = 700;  // nested evaluations; bounds the stack

/// Variables of one scope. Kept alive by the macros defined in it.
struct Frame {
  std::shared_ptr<Frame> parent;
  std::vector<std::pair<Symbol, Value>> variables;
  bool captured = false;

  void set(Symbol symbol, Value value) {
    for (auto& [present, held] : variables) {
      if (present == symbol) {
        held = std::move(value);
        return;
      }
    }
    variables.emplace_back(symbol, std::move(value));
  }
};

enum class Flow { kNext, kBreak, kContinue };

class Interpreter final : public Runtime {
 public:
  Interpreter(const Template& source, const RenderContext& context)
      : source_(source), context_(context) {
    globals_.reserve(source.symbols.size());
    for (std::size_t i = 0; i < source.symbols.size(); ++i) {
      const std::string& name = source.symbols[i];
      std::optional<Value> value = context.variable(name);
      if (!value) {
        if (auto global = find_global(name)) value = Value(std::move(global));
      }
      if (name == "loop") loop_symbol_ = static_cast<Symbol>(i);
      if (name == "caller") caller_symbol_ = static_cast<Symbol>(i);
      if (name == "varargs") varargs_symbol_ = static_cast<Symbol>(i);
      if (name == "kwargs") kwargs_symbol_ = static_cast<Symbol>(i);
      globals_.push_back(std::move(value));
    }
  }

  // Namespaces and the scopes that macros hold can form cycles; emptying them breaks those.
  ~Interpreter() override {
    for (auto& held : namespaces_)
      held->attributes.clear();
    for (auto& frame : captured_)
      frame->variables.clear();
  }
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  Text run() {
    Text out;
    out_ = &out;
    frame_ = std::make_shared<Frame>();
    try {
      execute(source_.body);
    } catch (const TemplateError& error) {
      throw TemplateError(error.what(), line_, error.raised());
    }
    return out;
  }

  void charge(std::size_t units) override {
    work_ += units;
    if (work_ > context_.max_work) {
      throw TemplateError("the template takes too many steps, more than " +
                          std::to_string(context_.max_work));
    }
  }

  Value call_filter(std::string_view name, const Value& input, const Args& args) override {
    const FilterFunction filter = find_filter(name);
    if (filter == nullptr) throw TemplateError("No filter named '" + std::string(name) + "'.");
    charge(1 + size_of(input) / 64);
    Value result = filter(*this, input, args);
    charge(size_of(result) / 64);
    return result;
  }

  bool call_test(std::string_view name, const Value& input, const Args& args) override {
    const TestFunction test = find_test(name);
    if (test == nullptr) throw TemplateError("No test named '" + std::string(name) + "'.");
    charge(1);
    return test(*this, input, args);
  }

  std::shared_ptr<Namespace> make_namespace() override {
    namespaces_.push_back(std::make_shared<Namespace>());
    return namespaces_.back();
  }

  std::int64_t now_unix_seconds() const override { return context_.now_unix_seconds; }

  Value call_macro(const Signature& signature, const Body& body,
                   const std::shared_ptr<Frame>& closure, const Args& args);

 private:
  /// Counts nested evaluations while it lives.
  class Depth {
   public:
    explicit Depth(int& depth) : depth_(depth) {
      if (++depth_ > kMaxCallDepth) {
        --depth_;
        throw TemplateError("the template recurses too deeply");
      }
    }
    ~Depth() { --depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;

   private:
    int& depth_;
  };

  /// Restores the scope and the output when a block ends, however it ends.
  class Scope {
   public:
    Scope(Interpreter& in, std::shared_ptr<Frame> frame, Text* out)
        : in_(in), frame_(std::exchange(in.frame_, std::move(frame))), out_(in.out_) {
      in.out_ = out;
    }
    ~Scope() {
      in_.frame_ = std::move(frame_);
      in_.out_ = out_;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Interpreter& in_;
    std::shared_ptr<Frame> frame_;
    Text* out_;
  };

  /// Bytes that a pass over the value touches, roughly.
  static std::size_t size_of(const Value& value) {
    if (const Text* text = value.as_text()) return text->size();
    return value.weight() * 16;
  }

  std::shared_ptr<Frame> child_frame() const {
    auto frame = std::make_shared<Frame>();
    frame->parent = frame_;
    return frame;
  }

  void capture(const std::shared_ptr<Frame>& frame) {
    for (std::shared_ptr<Frame> f = frame; f != nullptr && !f->captured; f = f->parent) {
      f->captured = true;
      captured_.push_back(f);
    }
  }

  Value look_up(const Expr& name) const {
    for (const Frame* frame = frame_.get(); frame != nullptr; frame = frame->parent.get()) {
      for (const auto& [symbol, value] : frame->variables) {
        if (symbol == name.symbol) return value;
      }
    }
    const auto& global = globals_[static_cast<std::size_t>(name.symbol)];
    return global ? *global : Value::undefined("'" + name.text + "' is undefined");
  }

  // --- statements

  Flow execute(const Body& body) {
    const Depth depth(depth_);
    for (const auto& stmt : body) {
      const Flow flow = execute(*stmt);
      if (flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  Flow execute(const Stmt& stmt) {
    charge(1);
    line_ = stmt.line;
    switch (stmt.kind) {
      case StmtKind::kData:
        out_->append(stmt.text);
        return Flow::kNext;
      case StmtKind::kOutput: {
        const Value value = evaluate(*stmt.expr);
        const std::size_t before = out_->size();
        append_text(*out_, value);
        charge((out_->size() - before) / 64);
        return Flow::kNext;
      }
      case StmtKind::kIf:
        for (const auto& [test, body] : stmt.branches) {
          if (evaluate(*test).truthy()) return execute(body);
        }
        return execute(stmt.otherwise);
      case StmtKind::kFor:
        return execute_for(stmt);
      case StmtKind::kSet:
        assign(*stmt.target, evaluate(*stmt.expr));
        return Flow::kNext;
      case StmtKind::kSetBlock: {
        Value value = Value::text(captured_output(stmt.body, child_frame()));
        if (stmt.expr != nullptr) value = apply_filters(*stmt.expr, value);
        assign(*stmt.target, std::move(value));
        return Flow::kNext;
      }
      case StmtKind::kMacro:
        frame_->set(stmt.symbol, make_macro(stmt));
        return Flow::kNext;
      case StmtKind::kCallBlock: {
        Args args = evaluate_arguments(*stmt.expr);
        args.named.emplace_back("caller", make_macro(stmt));
        append_text(*out_, call(evaluate(*stmt.expr->children[0]), args));
        return Flow::kNext;
      }
      case StmtKind::kFilterBlock: {
        const Value text = Value::text(captured_output(stmt.body, child_frame()));
        append_text(*out_, apply_filters(*stmt.expr, text));
        return Flow::kNext;
      }
      case StmtKind::kWith: {
        auto frame = child_frame();
        std::vector<Value> values;
        values.reserve(stmt.assignments.size());
        for (const auto& [target, expr] : stmt.assignments)
          values.push_back(evaluate(*expr));
        const Scope scope(*this, std::move(frame), out_);
        for (std::size_t i = 0; i < values.size(); ++i) {
          assign(*stmt.assignments[i].first, std::move(values[i]));
        }
        return execute(stmt.body);
      }
      case StmtKind::kScope: {
        const Scope scope(*this, child_frame(), out_);
        return execute(stmt.body);
      }
      case StmtKind::kBreak:
        return Flow::kBreak;
      case StmtKind::kContinue:
        return Flow::kContinue;
    }
    return Flow::kNext;
  }

  Flow execute_for(const Stmt& stmt) {
    std::shared_ptr<const Sequence> items = iterate(evaluate(*stmt.expr)).sequence();
    // Jinja filters as it walks; `loop` has to know what is left, so there the test runs first.
    const bool test_first = stmt.test != nullptr && stmt.uses_loop;
    if (test_first) {
      std::vector<Value> kept;
      for (const Value& item : items->items) {
        const Scope scope(*this, child_frame(), out_);
        assign(*stmt.target, item);
        if (evaluate(*stmt.test).truthy()) kept.push_back(item);
      }
      items = std::make_shared<const Sequence>(Sequence::Flavor::kList, std::move(kept));
    }
    std::shared_ptr<LoopState> loop;
    if (stmt.uses_loop) loop = std::make_shared<LoopState>(items);
    bool walked = false;
    std::shared_ptr<Frame> frame;
    for (std::size_t i = 0; i < items->items.size(); ++i) {
      charge(1);
      if (frame == nullptr || frame.use_count() > 1) {
        frame = child_frame();
      } else {
        frame->variables.clear();
      }
      const Scope scope(*this, frame, out_);
      if (loop != nullptr) {
        loop->index0 = i;
        frame->set(loop_symbol_, Value(loop));
      }
      assign(*stmt.target, items->items[i]);
      if (stmt.test != nullptr && !test_first && !evaluate(*stmt.test).truthy()) continue;
      walked = true;
      if (execute(stmt.body) == Flow::kBreak) break;
    }
    if (walked) return Flow::kNext;
    const Scope scope(*this, child_frame(), out_);
    return execute(stmt.otherwise);
  }

  void assign(const Expr& target, Value value) {
    if (target.kind == ExprKind::kName) {
      frame_->set(target.symbol, std::move(value));
    } else if (target.kind == ExprKind::kAttribute) {
      const Value object = look_up(*target.children[0]);
      const auto* held = std::get_if<std::shared_ptr<Namespace>>(&object.storage());
      if (held == nullptr) {
        throw TemplateError("cannot assign attribute on non-namespace object");
      }
      if (target.text.front() == '_') {
        throw TemplateError("a namespace cannot hold '" + target.text +
                            "': names that start with an underscore are reserved");
      }
      (*held)->set(target.text, std::move(value));
    } else {
      const auto items = iterate(value);
      if (items.vector().size() != target.children.size()) {
        throw TemplateError("cannot unpack " + std::to_string(items.vector().size()) +
                            " values into " + std::to_string(target.children.size()) + " names");
      }
      for (std::size_t i = 0; i < target.children.size(); ++i) {
        assign(*target.children[i], items.vector()[i]);
      }
    }
  }

  Text captured_output(const Body& body, std::shared_ptr<Frame> frame) {
    Text out;
    const Scope scope(*this, std::move(frame), &out);
    execute(body);
    return out;
  }

  // --- expressions

  Value evaluate(const Expr& expr) {
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

  std::vector<Value> evaluate_all(const Expr& expr) {
    std::vector<Value> values;
    values.reserve(expr.children.size());
    for (const ExprPtr& child : expr.children)
      values.push_back(evaluate(*child));
    return values;
  }

  Value evaluate_dict(const Expr& expr) {
    auto dict = std::make_shared<Dict>();
    for (std::size_t i = 0; i + 1 < expr.children.size(); i += 2) {
      Value key = evaluate(*expr.children[i]);
      dict->set(std::move(key), evaluate(*expr.children[i + 1]));
    }
    return Value(std::shared_ptr<const Dict>(std::move(dict)));
  }

  Value evaluate_slice(const Expr& expr) {
    const Value object = evaluate(*expr.children[0]);
    Value bounds[3];
    for (std::size_t i = 0; i < 3; ++i) {
      if (expr.children[i + 1] != nullptr) bounds[i] = evaluate(*expr.children[i + 1]);
    }
    charge(size_of(object) / 64);
    return get_slice(object, bounds[0], bounds[1], bounds[2]);
  }

  Value evaluate_positive(const Expr& expr) {
    Value value = evaluate(*expr.children[0]);
    require_defined(value);
    if (!value.is_number()) fail_type("bad operand type for unary +", value);
    return value.is<bool>() ? Value::integer(value.to_int()) : value;
  }

  Value evaluate_binary(const Expr& expr) {
    const Value left = evaluate(*expr.children[0]);
    const Value right = evaluate(*expr.children[1]);
    Value result = expr.text == "+" ? add(left, right) : arithmetic(expr.text, left, right);
    charge(size_of(result) / 64);
    return result;
  }

  bool evaluate_compare(const Expr& expr) {
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
        holds = op == "<"    ? order < 0
                : op == "<=" ? order <= 0
                : op == ">"  ? order > 0
                             : order >= 0;
      }
      if (!holds) return false;
      left = std::move(right);
    }
    return true;
  }

  Args evaluate_arguments(const Expr& expr) {
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

  Value call(const Value& callee, const Args& args) {
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

  /// A block's filters, whose innermost input is `text`.
  Value apply_filters(const Expr& filter, const Value& text) {
    const Depth depth(depth_);
    const ExprPtr& inner = filter.children[0];
    const Value input = inner == nullptr ? text : apply_filters(*inner, text);
    line_ = filter.line;
    return call_filter(filter.text, input, evaluate_arguments(filter));
  }

  Value make_macro(const Stmt& stmt);

  const Template& source_;
  const RenderContext& context_;
  std::vector<std::optional<Value>> globals_;  ///< by symbol: what was passed in, then builtins
  Symbol loop_symbol_ = -1;
  Symbol caller_symbol_ = -1;
  Symbol varargs_symbol_ = -1;
  Symbol kwargs_symbol_ = -1;
  std::shared_ptr<Frame> frame_;
  Text* out_ = nullptr;
  int line_ = 0;
  int depth_ = 0;
  std::size_t work_ = 0;
  std::vector<std::shared_ptr<Namespace>> namespaces_;
  std::vector<std::shared_ptr<Frame>> captured_;
};

/// A macro or a call block's body, with the scope it was defined in.
class Macro final : public Callable {
 public:
  Macro(const Stmt& stmt, std::shared_ptr<Frame> closure)
      : Callable(stmt.signature.name), stmt_(stmt), closure_(std::move(closure)) {}

  Value call(Runtime& runtime, const Args& args) const override {
    return static_cast<Interpreter&>(runtime).call_macro(stmt_.signature, stmt_.body, closure_,
                                                         args);
  }

 private:
  const Stmt& stmt_;
  std::shared_ptr<Frame> closure_;
};

Value Interpreter::make_macro(const Stmt& stmt) {
  capture(frame_);
  return Value(std::shared_ptr<const Callable>(std::make_shared<Macro>(stmt, frame_)));
}

Value Interpreter::call_macro(const Signature& signature, const Body& body,
                              const std::shared_ptr<Frame>& closure, const Args& args) {
  const Depth depth(depth_);
  auto frame = std::make_shared<Frame>();
  frame->parent = closure;
  std::vector<Value> extra;
  std::vector<bool> given(signature.parameters.size(), false);
  for (std::size_t i = 0; i < args.positional.size(); ++i) {
    if (i < signature.parameters.size()) {
      frame->set(signature.parameters[i].first, args.positional[i]);
      given[i] = true;
    } else if (signature.uses_varargs) {
      extra.push_back(args.positional[i]);
    } else {
      throw TemplateError("macro '" + signature.name + "' takes not more than " +
                          std::to_string(signature.parameters.size()) + " argument(s)");
    }
  }
  auto extra_named = std::make_shared<Dict>();
  for (const auto& [name, value] : args.named) {
    const auto parameter = std::find_if(signature.parameters.begin(), signature.parameters.end(),
                                        [&name = name](const auto& p) { return p.second == name; });
    if (parameter != signature.parameters.end()) {
      const auto i = static_cast<std::size_t>(parameter - signature.parameters.begin());
      if (given[i]) throw TemplateError("macro got multiple values for argument '" + name + "'");
      frame->set(parameter->first, value);
      given[i] = true;
    } else if (name == "caller" && signature.uses_caller) {
      frame->set(caller_symbol_, value);
    } else if (signature.uses_kwargs) {
      extra_named->set(Value::text(name, Origin::kUser), value);
    } else {
      throw TemplateError("macro '" + signature.name + "' takes no keyword argument '" + name +
                          "'");
    }
  }
  if (signature.uses_varargs) frame->set(varargs_symbol_, Value::tuple(std::move(extra)));
  if (signature.uses_kwargs) {
    frame->set(kwargs_symbol_, Value(std::shared_ptr<const Dict>(std::move(extra_named))));
  }
  Text out;
  const Scope scope(*this, frame, &out);
  const std::size_t first_default = signature.parameters.size() - signature.defaults.size();
  for (std::size_t i = 0; i < given.size(); ++i) {
    if (given[i]) continue;
    const auto& [symbol, name] = signature.parameters[i];
    frame->set(symbol, i >= first_default
                           ? evaluate(*signature.defaults[i - first_default])
                           : Value::undefined("parameter '" + name + "' was not provided"));
  }
  execute(body);
  return Value::text(std::move(out));
}

}  // namespace

Text render(const Template& source, const RenderContext& context) {
  return Interpreter(source, context).run();
}

}  // namespace thaw::text::jinja
