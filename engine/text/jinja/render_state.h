#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/jinja/ast.h"
#include "engine/text/jinja/error.h"
#include "engine/text/jinja/interpreter.h"
#include "engine/text/jinja/runtime.h"

namespace thaw::text::jinja {

/// Variables of one scope. Kept alive by the macros defined in it.
struct Frame {
  std::shared_ptr<Frame> parent;
  std::vector<std::pair<Symbol, Value>> variables;
  bool captured = false;

  void set(Symbol symbol, Value value);
};

enum class Flow { kNext, kBreak, kContinue };

/// One render: what it has computed so far and what it may still spend. Its own business is in
/// interpreter.cc; what statements do, in statements.cc; expressions, in expressions.cc; macros, in
/// macros.cc. One thread.
class Interpreter final : public Runtime {
 public:
  Interpreter(const Template& source, const RenderContext& context);
  ~Interpreter() override;
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  Text run();
  void charge(std::size_t units) override;
  Value call_filter(std::string_view name, const Value& input, const Args& args) override;
  bool call_test(std::string_view name, const Value& input, const Args& args) override;
  std::shared_ptr<Namespace> make_namespace() override;
  std::int64_t now_unix_seconds() const override { return context_.now_unix_seconds; }
  Value call_macro(const Signature& signature, const Body& body,
                   const std::shared_ptr<Frame>& closure, const Args& args);

 private:
  /// Counts nested evaluations while it lives.
  class Depth {
   public:
    explicit Depth(int& depth);
    ~Depth() { --depth_; }
    Depth(const Depth&) = delete;
    Depth& operator=(const Depth&) = delete;

   private:
    int& depth_;
  };

  /// Restores the scope and the output when a block ends, however it ends.
  class Scope {
   public:
    Scope(Interpreter& in, std::shared_ptr<Frame> frame, Text* out);
    ~Scope();
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Interpreter& in_;
    std::shared_ptr<Frame> frame_;
    Text* out_;
  };

  /// Bytes that a pass over the value touches, roughly.
  static std::size_t size_of(const Value& value);
  std::shared_ptr<Frame> child_frame() const;
  void capture(const std::shared_ptr<Frame>& frame);
  Value look_up(const Expr& name) const;

  Flow execute(const Body& body);
  Flow execute(const Stmt& stmt);
  Flow execute_for(const Stmt& stmt);
  Flow execute_with(const Stmt& stmt);
  void assign(const Expr& target, Value value);
  Text captured_output(const Body& body, std::shared_ptr<Frame> frame);

  Value evaluate(const Expr& expr);
  std::vector<Value> evaluate_all(const Expr& expr);
  Value evaluate_dict(const Expr& expr);
  Value evaluate_slice(const Expr& expr);
  Value evaluate_positive(const Expr& expr);
  Value evaluate_binary(const Expr& expr);
  bool evaluate_compare(const Expr& expr);
  Args evaluate_arguments(const Expr& expr);
  Value call(const Value& callee, const Args& args);
  /// A block's filters, whose innermost input is `text`.
  Value apply_filters(const Expr& filter, const Value& text);

  Value make_macro(const Stmt& stmt);
  /// Puts the arguments of a call into `frame`; says which parameters were given.
  std::vector<bool> bind_parameters(const Signature& signature, const Args& args, Frame& frame);

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

}  // namespace thaw::text::jinja
