#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/text/jinja/value.h"

namespace thaw::text::jinja {

/// A name's position in Template::symbols.
using Symbol = int;

struct Expr;
using ExprPtr = std::unique_ptr<Expr>;

enum class ExprKind {
  kConst,  ///< value
  kName,  ///< symbol
  kList,  ///< children
  kTuple,  ///< children
  kDict,  ///< children: key, value, key, value, ...
  kAttribute,  ///< children[0].text
  kItem,  ///< children[0][children[1]]
  kSlice,  ///< children: object, start, stop, step; the last three may be null
  kCall,  ///< children[0](arguments)
  kFilter,  ///< children[0] | text(arguments); a null child stands for a block's output
  kTest,  ///< children[0] is text(arguments)
  kNot,
  kAnd,
  kOr,
  kNegate,
  kPositive,
  kBinary,  ///< children[0] text children[1]: + - * / // % **
  kConcat,  ///< children joined as text
  kCompare,  ///< children[0] operators[0] children[1] operators[1] ...
  kConditional,  ///< children: test, then, else (may be null)
};

struct CallArguments {
  std::vector<ExprPtr> positional;
  std::vector<std::pair<std::string, ExprPtr>> named;
  ExprPtr star;  ///< *expression, or null
  ExprPtr double_star;  ///< **expression, or null
};

struct Expr {
  ExprKind kind = ExprKind::kConst;
  int line = 0;
  int depth = 1;
  Value value;
  Symbol symbol = -1;
  std::string text;
  std::vector<ExprPtr> children;
  std::vector<std::string> operators;
  std::unique_ptr<CallArguments> arguments;
};

struct Stmt;
using Body = std::vector<std::unique_ptr<Stmt>>;

/// Parameters of a macro or of a call block.
struct Signature {
  std::string name;
  std::vector<std::pair<Symbol, std::string>> parameters;
  std::vector<ExprPtr> defaults;  ///< of the last parameters
  bool uses_caller = false;  ///< the body names `caller`, `varargs`, `kwargs`: they may be passed
  bool uses_varargs = false;
  bool uses_kwargs = false;
};

enum class StmtKind {
  kData,  ///< text
  kOutput,  ///< expr
  kIf,  ///< branches, otherwise
  kFor,  ///< target, expr (what is walked), test (may be null), body, otherwise
  kSet,  ///< target = expr
  kSetBlock,  ///< target = body through the filters of expr (may be null)
  kMacro,  ///< symbol, signature, body
  kCallBlock,  ///< expr (a call) with signature and body as its caller
  kFilterBlock,  ///< body through the filters of expr
  kWith,  ///< assignments, body
  kScope,  ///< body with a scope of its own (generation)
  kBreak,
  kContinue,
};

struct Stmt {
  StmtKind kind = StmtKind::kData;
  int line = 0;
  Text text;
  Symbol symbol = -1;
  ExprPtr target;
  ExprPtr expr;
  ExprPtr test;
  Body body;
  Body otherwise;
  std::vector<std::pair<ExprPtr, Body>> branches;
  std::vector<std::pair<ExprPtr, ExprPtr>> assignments;
  Signature signature;
  bool uses_loop = false;  ///< a kFor whose body names `loop`
};

/// A parsed template: immutable, shared by renders on any thread.
struct Template {
  Body body;
  std::vector<std::string> symbols;
};

}  // namespace thaw::text::jinja
