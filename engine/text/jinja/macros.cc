#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/jinja/render_state.h"

// Macros and call blocks: what a template defines for itself to call.
namespace thaw::text::jinja {
namespace {

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

}  // namespace

Value Interpreter::make_macro(const Stmt& stmt) {
  capture(frame_);
  return Value(std::shared_ptr<const Callable>(std::make_shared<Macro>(stmt, frame_)));
}

std::vector<bool> Interpreter::bind_parameters(const Signature& signature, const Args& args,
                                               Frame& frame) {
  std::vector<Value> extra;
  std::vector<bool> given(signature.parameters.size(), false);
  for (std::size_t i = 0; i < args.positional.size(); ++i) {
    if (i < signature.parameters.size()) {
      frame.set(signature.parameters[i].first, args.positional[i]);
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
      frame.set(parameter->first, value);
      given[i] = true;
    } else if (name == "caller" && signature.uses_caller) {
      frame.set(caller_symbol_, value);
    } else if (signature.uses_kwargs) {
      extra_named->set(Value::text(name, Origin::kUser), value);
    } else {
      throw TemplateError("macro '" + signature.name + "' takes no keyword argument '" + name +
                          "'");
    }
  }
  if (signature.uses_varargs) frame.set(varargs_symbol_, Value::tuple(std::move(extra)));
  if (signature.uses_kwargs) {
    frame.set(kwargs_symbol_, Value(std::shared_ptr<const Dict>(std::move(extra_named))));
  }
  return given;
}

Value Interpreter::call_macro(const Signature& signature, const Body& body,
                              const std::shared_ptr<Frame>& closure, const Args& args) {
  const Depth depth(depth_);
  auto frame = std::make_shared<Frame>();
  frame->parent = closure;
  const std::vector<bool> given = bind_parameters(signature, args, *frame);
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

}  // namespace thaw::text::jinja
