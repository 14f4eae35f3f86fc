#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/text/jinja/value.h"

namespace thaw::text::jinja {

/// Arguments of a call, in the template's order.
struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;
};

/// Arguments matched to a function's parameter names, as Python does it.
class BoundArgs {
 public:
  /// Errors: TemplateError for one argument too many, an unknown name, or one given twice.
  BoundArgs(const char* function, const Args& args, std::initializer_list<std::string_view> names);

  /// Null where the argument was left out.
  const Value* operator[](std::size_t index) const { return bound_[index]; }
  const Value& required(std::size_t index) const;
  bool flag(std::size_t index, bool otherwise) const;
  Int integer(std::size_t index, Int otherwise) const;

 private:
  const char* function_;
  std::vector<const Value*> bound_;
};

/// The TypeError for a value that cannot do what was asked.
[[noreturn]] void fail_type(const std::string& what, const Value& value);

/// What filters, tests, methods and globals may ask of the render they run in. One thread.
class Runtime {
 public:
  virtual ~Runtime() = default;

  /// Counts `units` of work (about a node visited, an item walked or 64 bytes copied each). Errors:
  /// TemplateError when the render's budget is spent.
  virtual void charge(std::size_t units) = 0;
  virtual Value call_filter(std::string_view name, const Value& input, const Args& args) = 0;
  virtual bool call_test(std::string_view name, const Value& input, const Args& args) = 0;
  /// A new namespace; the render empties it at its end, so that cycles cannot leak.
  virtual std::shared_ptr<Namespace> make_namespace() = 0;
  virtual std::int64_t now_unix_seconds() const = 0;
};

/// Something a template can call.
class Callable {
 public:
  explicit Callable(std::string name) : name_(std::move(name)) {}
  virtual ~Callable() = default;
  virtual Value call(Runtime& runtime, const Args& args) const = 0;
  virtual int depth() const { return 1; }
  const std::string& name() const { return name_; }

 private:
  std::string name_;
};

/// `loop` inside a for.
class LoopState {
 public:
  explicit LoopState(std::shared_ptr<const Sequence> items) : items(std::move(items)) {}

  std::shared_ptr<const Sequence> items;
  std::size_t index0 = 0;
};

using FilterFunction = Value (*)(Runtime&, const Value& input, const Args& args);
using TestFunction = bool (*)(Runtime&, const Value& input, const Args& args);

/// What a value gives when it is walked. Owns it, so that `for (... : iterate(x))` is safe.
class Items {
 public:
  explicit Items(std::shared_ptr<const Sequence> sequence) : sequence_(std::move(sequence)) {}
  const std::vector<Value>& vector() const { return sequence_->items; }
  auto begin() const { return sequence_->items.begin(); }
  auto end() const { return sequence_->items.end(); }
  const std::shared_ptr<const Sequence>& sequence() const { return sequence_; }

 private:
  std::shared_ptr<const Sequence> sequence_;
};

/// Null where there is no such filter, test or global.
FilterFunction find_filter(std::string_view name);
TestFunction find_test(std::string_view name);
/// range, dict, namespace, raise_exception, strftime_now.
std::shared_ptr<const Callable> find_global(std::string_view name);
/// A method of str, dict, list or tuple bound to `self`; null when the type has none so named.
/// Methods that mutate are not found: the sandbox is immutable.
std::shared_ptr<const Callable> find_method(const Value& self, std::string_view name);

/// The items Python's iter() would give. Errors: TemplateError for what cannot be iterated. Marks
/// an iterator as walked.
Items iterate(const Value& value);
/// x.name and x[key] by Jinja's rules: what is missing is Undefined.
Value get_attribute(const Value& object, std::string_view name);
Value get_item(const Value& object, const Value& key);
/// x[start:stop:step]; None where left out.
Value get_slice(const Value& object, const Value& start, const Value& stop, const Value& step);

Value add(const Value& left, const Value& right);
/// `operation` is one of - * / // % **.
Value arithmetic(std::string_view operation, const Value& left, const Value& right);
Value negate(const Value& value);
/// int(number). Errors: TemplateError for what is not finite or too large.
Int truncate(double number);
bool contains(const Value& container, const Value& item);
/// The printf-style `format % values`.
Text format_percent(const Text& format, const Value& values);

/// Throws the UndefinedError that using `value` gives, when it is undefined.
void require_defined(const Value& value);

}  // namespace thaw::text::jinja
