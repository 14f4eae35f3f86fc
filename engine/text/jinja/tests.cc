#include <unordered_map>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/print.h"
#include "engine/text/jinja/runtime.h"
#include "engine/text/jinja/unicode.h"

// The functions behind `is`.
namespace thaw::text::jinja {
namespace {

using Flavor = Sequence::Flavor;

const Value& argument(const Args& args) {
  if (args.positional.size() != 1 || !args.named.empty()) {
    throw TemplateError("the test takes one argument");
  }
  return args.positional[0];
}

Int number(const Value& value) {
  if (!value.is_int()) fail_type("an integer is needed", value);
  return value.to_int();
}

bool is_iterable(const Value& v) {
  return v.is_string() || v.as_sequence() != nullptr || v.as_dict() != nullptr ||
         v.is_undefined() || v.is<std::shared_ptr<LoopState>>();
}

bool is_sequence(const Value& v) {
  const Sequence* sequence = v.as_sequence();
  return v.is_string() || v.as_dict() != nullptr || v.is_undefined() ||
         (sequence != nullptr && sequence->indexable());
}

/// Python's islower and isupper: at least one letter with case, and none of the other case.
bool all_cased(const Value& value, bool (*wanted)(char32_t), bool (*refused)(char32_t)) {
  const Text text = to_text(value);
  bool found = false;
  for (std::size_t at = 0; at < text.size();) {
    const CodePoint c = decode_at(text.bytes(), at);
    if (refused(c.value)) return false;
    found = found || wanted(c.value);
    at += c.size;
  }
  return found;
}

bool same(const Value& left, const Value& right) {
  if (left.storage().index() != right.storage().index()) return false;
  if (left.as_sequence() != nullptr) return left.as_sequence() == right.as_sequence();
  if (left.as_dict() != nullptr) return left.as_dict() == right.as_dict();
  return equal(left, right);
}

const std::unordered_map<std::string_view, TestFunction>& tests() {
  static const std::unordered_map<std::string_view, TestFunction> tests{
      {"defined", [](Runtime&, const Value& v, const Args&) { return !v.is_undefined(); }},
      {"undefined", [](Runtime&, const Value& v, const Args&) { return v.is_undefined(); }},
      {"none", [](Runtime&, const Value& v, const Args&) { return v.is_none(); }},
      {"mapping", [](Runtime&, const Value& v, const Args&) { return v.as_dict() != nullptr; }},
      {"iterable", [](Runtime&, const Value& v, const Args&) { return is_iterable(v); }},
      {"sequence", [](Runtime&, const Value& v, const Args&) { return is_sequence(v); }},
      {"string", [](Runtime&, const Value& v, const Args&) { return v.is_string(); }},
      {"boolean", [](Runtime&, const Value& v, const Args&) { return v.is<bool>(); }},
      {"number", [](Runtime&, const Value& v, const Args&) { return v.is_number(); }},
      {"integer", [](Runtime&, const Value& v, const Args&) { return v.is<Int>(); }},
      {"float", [](Runtime&, const Value& v, const Args&) { return v.is<double>(); }},
      {"true", [](Runtime&, const Value& v, const Args&) { return v.is<bool>() && v.truthy(); }},
      {"false", [](Runtime&, const Value& v, const Args&) { return v.is<bool>() && !v.truthy(); }},
      {"callable",
       [](Runtime&, const Value& v, const Args&) {
         return v.is<std::shared_ptr<const Callable>>() || v.is_undefined();
       }},
      {"escaped", [](Runtime&, const Value& v, const Args&) { return v.is_markup(); }},
      {"odd", [](Runtime&, const Value& v, const Args&) { return number(v) % 2 != 0; }},
      {"even", [](Runtime&, const Value& v, const Args&) { return number(v) % 2 == 0; }},
      {"divisibleby",
       [](Runtime&, const Value& v, const Args& args) {
         const Int divisor = number(argument(args));
         if (divisor == 0) throw TemplateError("integer modulo by zero");
         return number(v) % divisor == 0;
       }},
      {"lower",
       [](Runtime&, const Value& v, const Args&) { return all_cased(v, is_lower, is_upper); }},
      {"upper",
       [](Runtime&, const Value& v, const Args&) { return all_cased(v, is_upper, is_lower); }},
      {"sameas",
       [](Runtime&, const Value& v, const Args& args) { return same(v, argument(args)); }},
      {"in",
       [](Runtime&, const Value& v, const Args& args) { return contains(argument(args), v); }},
      {"filter",
       [](Runtime&, const Value& v, const Args&) {
         return v.is_string() && find_filter(v.as_text()->bytes()) != nullptr;
       }},
      {"test",
       [](Runtime&, const Value& v, const Args&) {
         return v.is_string() && find_test(v.as_text()->bytes()) != nullptr;
       }},
      {"eq", [](Runtime&, const Value& v, const Args& args) { return equal(v, argument(args)); }},
      {"ne", [](Runtime&, const Value& v, const Args& args) { return !equal(v, argument(args)); }},
      {"lt", [](Runtime&, const Value& v,
                const Args& args) { return compare(v, argument(args), "<") < 0; }},
      {"le", [](Runtime&, const Value& v,
                const Args& args) { return compare(v, argument(args), "<=") <= 0; }},
      {"gt", [](Runtime&, const Value& v,
                const Args& args) { return compare(v, argument(args), ">") > 0; }},
      {"ge", [](Runtime&, const Value& v,
                const Args& args) { return compare(v, argument(args), ">=") >= 0; }},
  };
  return tests;
}

std::string_view plain_name(std::string_view name) {
  if (name == "==" || name == "equalto") return "eq";
  if (name == "!=") return "ne";
  if (name == "<" || name == "lessthan") return "lt";
  if (name == "<=") return "le";
  if (name == ">" || name == "greaterthan") return "gt";
  if (name == ">=") return "ge";
  return name;
}

}  // namespace

TestFunction find_test(std::string_view name) {
  const auto found = tests().find(plain_name(name));
  return found == tests().end() ? nullptr : found->second;
}

}  // namespace thaw::text::jinja
