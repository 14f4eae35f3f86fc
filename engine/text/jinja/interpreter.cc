#include "engine/text/jinja/interpreter.h"

#include <string>
#include <utility>

#include "engine/text/jinja/render_state.h"

// A render's variables, scopes and budget.
namespace thaw::text::jinja {
namespace {

constexpr int kMaxCallDepth = 700;  // nested evaluations; bounds the stack

}  // namespace

void Frame::set(Symbol symbol, Value value) {
  for (auto& [present, held] : variables) {
    if (present == symbol) {
      held = std::move(value);
      return;
    }
  }
  variables.emplace_back(symbol, std::move(value));
}

Interpreter::Depth::Depth(int& depth) : depth_(depth) {
  if (++depth_ > kMaxCallDepth) {
    --depth_;
    throw TemplateError("the template recurses too deeply");
  }
}

Interpreter::Scope::Scope(Interpreter& in, std::shared_ptr<Frame> frame, Text* out)
    : in_(in), frame_(std::exchange(in.frame_, std::move(frame))), out_(in.out_) {
  in.out_ = out;
}

Interpreter::Scope::~Scope() {
  in_.frame_ = std::move(frame_);
  in_.out_ = out_;
}

Interpreter::Interpreter(const Template& source, const RenderContext& context)
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
Interpreter::~Interpreter() {
  for (auto& held : namespaces_)
    held->attributes.clear();
  for (auto& frame : captured_)
    frame->variables.clear();
}

Text Interpreter::run() {
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

void Interpreter::charge(std::size_t units) {
  work_ += units;
  if (work_ > context_.max_work) {
    throw TemplateError("the template takes too many steps, more than " +
                        std::to_string(context_.max_work));
  }
}

Value Interpreter::call_filter(std::string_view name, const Value& input, const Args& args) {
  const FilterFunction filter = find_filter(name);
  if (filter == nullptr) throw TemplateError("No filter named '" + std::string(name) + "'.");
  charge(1 + size_of(input) / 64);
  Value result = filter(*this, input, args);
  charge(size_of(result) / 64);
  return result;
}

bool Interpreter::call_test(std::string_view name, const Value& input, const Args& args) {
  const TestFunction test = find_test(name);
  if (test == nullptr) throw TemplateError("No test named '" + std::string(name) + "'.");
  charge(1);
  return test(*this, input, args);
}

std::shared_ptr<Namespace> Interpreter::make_namespace() {
  namespaces_.push_back(std::make_shared<Namespace>());
  return namespaces_.back();
}

std::size_t Interpreter::size_of(const Value& value) {
  if (const Text* text = value.as_text()) return text->size();
  return value.weight() * 16;
}

std::shared_ptr<Frame> Interpreter::child_frame() const {
  auto frame = std::make_shared<Frame>();
  frame->parent = frame_;
  return frame;
}

void Interpreter::capture(const std::shared_ptr<Frame>& frame) {
  for (std::shared_ptr<Frame> f = frame; f != nullptr && !f->captured; f = f->parent) {
    f->captured = true;
    captured_.push_back(f);
  }
}

Value Interpreter::look_up(const Expr& name) const {
  for (const Frame* frame = frame_.get(); frame != nullptr; frame = frame->parent.get()) {
    for (const auto& [symbol, value] : frame->variables) {
      if (symbol == name.symbol) return value;
    }
  }
  const auto& global = globals_[static_cast<std::size_t>(name.symbol)];
  return global ? *global : Value::undefined("'" + name.text + "' is undefined");
}

Text render(const Template& source, const RenderContext& context) {
  return Interpreter(source, context).run();
}

}  // namespace thaw::text::jinja
