#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/jinja/print.h"
#include "engine/text/jinja/render_state.h"

// What the tags of a template do.
namespace thaw::text::jinja {

Flow Interpreter::execute(const Body& body) {
  const Depth depth(depth_);
  for (const auto& stmt : body) {
    const Flow flow = execute(*stmt);
    if (flow != Flow::kNext) return flow;
  }
  return Flow::kNext;
}

Flow Interpreter::execute(const Stmt& stmt) {
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
    case StmtKind::kWith:
      return execute_with(stmt);
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

Flow Interpreter::execute_for(const Stmt& stmt) {
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

Flow Interpreter::execute_with(const Stmt& stmt) {
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

void Interpreter::assign(const Expr& target, Value value) {
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

Text Interpreter::captured_output(const Body& body, std::shared_ptr<Frame> frame) {
  Text out;
  const Scope scope(*this, std::move(frame), &out);
  execute(body);
  return out;
}

}  // namespace thaw::text::jinja
