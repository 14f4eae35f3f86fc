#include <array>
#include <ctime>
#include <utility>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/print.h"
#include "engine/text/jinja/runtime.h"

// The functions a template can call by name, and how arguments are matched to parameters.
namespace thaw::text::jinja {
namespace {

constexpr Int kMaxRange = 100'000;  // the sandbox's limit

class Function final : public Callable {
 public:
  using Body = Value (*)(Runtime&, const Args&);
  Function(std::string name, Body body) : Callable(std::move(name)), body_(body) {}
  Value call(Runtime& runtime, const Args& args) const override { return body_(runtime, args); }

 private:
  Body body_;
};

/// What dict(...) and namespace(...) take: one mapping or list of pairs, then names.
template <typename Set>
void each_entry(const char* function, const Args& args, Set&& set) {
  if (args.positional.size() > 1) {
    throw TemplateError(std::string(function) + " expected at most 1 argument");
  }
  if (!args.positional.empty()) {
    const Value& source = args.positional[0];
    if (const Dict* dict = source.as_dict()) {
      for (const auto& [key, value] : dict->entries)
        set(key, value);
    } else {
      for (const Value& pair : iterate(source)) {
        const auto parts = iterate(pair);
        if (parts.vector().size() != 2) throw TemplateError("a pair of key and value is needed");
        set(parts.vector()[0], parts.vector()[1]);
      }
    }
  }
  for (const auto& [name, value] : args.named)
    set(Value::text(name, Origin::kUser), value);
}

Value make_range(Runtime& runtime, const Args& args) {
  if (args.positional.empty() || args.positional.size() > 3 || !args.named.empty()) {
    throw TemplateError("range takes 1 to 3 arguments");
  }
  std::array<Int, 3> bounds = {0, 0, 1};
  for (std::size_t i = 0; i < args.positional.size(); ++i) {
    if (!args.positional[i].is_int()) fail_type("range needs integers, not", args.positional[i]);
    bounds[i] = args.positional[i].to_int();
  }
  if (args.positional.size() == 1) std::swap(bounds[0], bounds[1]);
  const auto [start, stop, step] = bounds;
  if (step == 0) throw TemplateError("range() arg 3 must not be zero");
  constexpr Int kFar = Int{1} << 100;
  if (start > kFar || start < -kFar || stop > kFar || stop < -kFar) {
    throw TemplateError("range is too large");
  }
  const Int span = step > 0 ? stop - start : start - stop;
  const Int stride = step > 0 ? step : -step;
  const Int count = span <= 0 ? 0 : (span - 1) / stride + 1;
  if (count > kMaxRange) {
    throw TemplateError("Range too big. The sandbox blocks ranges larger than MAX_RANGE (" +
                        int_repr(kMaxRange) + ").");
  }
  runtime.charge(static_cast<std::size_t>(count));
  std::vector<Value> items;
  items.reserve(static_cast<std::size_t>(count));
  for (Int i = 0; i < count; ++i)
    items.push_back(Value::integer(start + i * step));
  return Value(std::shared_ptr<const Sequence>(
      std::make_shared<Sequence>(Sequence::Flavor::kRange, std::move(items))));
}

Value make_dict(Runtime&, const Args& args) {
  auto dict = std::make_shared<Dict>();
  each_entry("dict", args, [&](const Value& key, const Value& value) { dict->set(key, value); });
  return Value(std::shared_ptr<const Dict>(std::move(dict)));
}

Value make_namespace(Runtime& runtime, const Args& args) {
  auto result = runtime.make_namespace();
  each_entry("namespace", args, [&](const Value& key, const Value& value) {
    if (!key.is_string()) return;  // could never be read back
    const std::string& name = key.as_text()->bytes();
    if (!name.empty() && name.front() == '_') {
      throw TemplateError("a namespace cannot hold '" + name +
                          "': names that start with an underscore are reserved");
    }
    result->set(name, value);
  });
  return Value(std::move(result));
}

Value raise_exception(Runtime&, const Args& args) {
  const BoundArgs bound("raise_exception", args, {"message"});
  throw TemplateError(to_text(bound.required(0)).bytes(), 0, true);
}

Value strftime_now(Runtime& runtime, const Args& args) {
  const BoundArgs bound("strftime_now", args, {"format"});
  const Text* format = bound.required(0).as_text();
  if (format == nullptr) fail_type("strftime_now needs a format, not", bound.required(0));
  const std::time_t now = runtime.now_unix_seconds();
  std::tm fields{};
  gmtime_r(&now, &fields);
  if (format->empty()) return Value::text(Text());
  // strftime returns 0 both for "does not fit" and for nothing written: a trailing mark tells.
  const std::string marked = format->bytes() + "|";
  std::string out(marked.size() * 16 + 256, '\0');
  out.resize(std::strftime(out.data(), out.size(), marked.c_str(), &fields));
  if (out.empty()) throw TemplateError("strftime_now: the format is too long");
  out.pop_back();
  return Value::text(std::move(out), Origin::kUser);
}

}  // namespace

std::shared_ptr<const Callable> find_global(std::string_view name) {
  static const std::array<std::shared_ptr<const Callable>, 5> functions = {
      std::make_shared<Function>("range", make_range),
      std::make_shared<Function>("dict", make_dict),
      std::make_shared<Function>("namespace", make_namespace),
      std::make_shared<Function>("raise_exception", raise_exception),
      std::make_shared<Function>("strftime_now", strftime_now)};
  for (const auto& function : functions) {
    if (function->name() == name) return function;
  }
  return nullptr;
}

BoundArgs::BoundArgs(const char* function, const Args& args,
                     std::initializer_list<std::string_view> names)
    : function_(function), bound_(names.size(), nullptr) {
  if (args.positional.size() > names.size()) {
    throw TemplateError(std::string(function) + " takes at most " + std::to_string(names.size()) +
                        " arguments, " + std::to_string(args.positional.size()) + " were given");
  }
  for (std::size_t i = 0; i < args.positional.size(); ++i)
    bound_[i] = &args.positional[i];
  for (const auto& [name, value] : args.named) {
    std::size_t i = 0;
    while (i < names.size() && names.begin()[i] != name)
      ++i;
    if (i == names.size()) {
      throw TemplateError(std::string(function) + " got an unexpected keyword argument '" + name +
                          "'");
    }
    if (bound_[i] != nullptr) {
      throw TemplateError(std::string(function) + " got multiple values for argument '" + name +
                          "'");
    }
    bound_[i] = &value;
  }
}

const Value& BoundArgs::required(std::size_t index) const {
  if (bound_[index] == nullptr) {
    throw TemplateError(std::string(function_) + " is missing argument " +
                        std::to_string(index + 1));
  }
  return *bound_[index];
}

bool BoundArgs::flag(std::size_t index, bool otherwise) const {
  return bound_[index] == nullptr ? otherwise : bound_[index]->truthy();
}

Int BoundArgs::integer(std::size_t index, Int otherwise) const {
  if (bound_[index] == nullptr) return otherwise;
  if (!bound_[index]->is_int()) {
    fail_type(std::string(function_) + " needs an integer, not", *bound_[index]);
  }
  return bound_[index]->to_int();
}

}  // namespace thaw::text::jinja
