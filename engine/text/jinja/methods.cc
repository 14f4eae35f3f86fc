#include <unordered_map>
#include <utility>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/format.h"
#include "engine/text/jinja/print.h"
#include "engine/text/jinja/runtime.h"
#include "engine/text/jinja/text_ops.h"
#include "engine/text/jinja/unicode.h"

// Methods of str, dict, list, tuple and of the loop object.
namespace thaw::text::jinja {
namespace {

using Flavor = Sequence::Flavor;
using MethodBody = Value (*)(Runtime&, const Value& self, const Args& args);
using Methods = std::unordered_map<std::string_view, MethodBody>;

class Method final : public Callable {
 public:
  Method(std::string name, MethodBody body, Value self)
      : Callable(std::move(name)), body_(body), self_(std::move(self)) {}
  Value call(Runtime& runtime, const Args& args) const override {
    return body_(runtime, self_, args);
  }
  int depth() const override { return self_.depth() + 1; }

 private:
  MethodBody body_;
  Value self_;
};

const Text& text_of(const Value& value) {
  const Text* text = value.as_text();
  if (text == nullptr) fail_type("a string is needed, not", value);
  return *text;
}

/// A result of a string method: Markup stays Markup.
Value like(const Value& self, Text text) {
  return Value::text(std::move(text), self.is_markup());
}

Value texts(const Value& self, std::vector<Text> parts) {
  std::vector<Value> items;
  items.reserve(parts.size());
  for (Text& part : parts)
    items.push_back(like(self, std::move(part)));
  return Value::list(std::move(items));
}

std::int64_t limit(Int value) {
  return value < 0 ? -1 : static_cast<std::int64_t>(std::min<Int>(value, Int{1} << 60));
}

template <Side kSide>
Value strip_method(Runtime&, const Value& self, const Args& args) {
  const BoundArgs bound("strip", args, {"chars"});
  if (bound[0] == nullptr || bound[0]->is_none()) {
    return like(self, strip(text_of(self), std::nullopt, kSide));
  }
  return like(self, strip(text_of(self), text_of(*bound[0]).bytes(), kSide));
}

template <bool kFromRight>
Value split_method(Runtime&, const Value& self, const Args& args) {
  const BoundArgs bound("split", args, {"sep", "maxsplit"});
  const std::int64_t most = limit(bound.integer(1, -1));
  if (bound[0] == nullptr || bound[0]->is_none()) {
    if (kFromRight && most >= 0) throw TemplateError("rsplit needs a separator to count splits");
    return texts(self, split_spaces(text_of(self), most));
  }
  const std::string& separator = text_of(*bound[0]).bytes();
  if (separator.empty()) throw TemplateError("empty separator");
  return texts(self, kFromRight ? split_right(text_of(self), separator, most)
                                : split(text_of(self), separator, most));
}

template <bool kFromRight>
Value partition_method(Runtime&, const Value& self, const Args& args) {
  const BoundArgs bound("partition", args, {"sep"});
  const Text& text = text_of(self);
  const Text& separator = text_of(bound.required(0));
  if (separator.empty()) throw TemplateError("empty separator");
  const std::size_t at =
      kFromRight ? text.bytes().rfind(separator.bytes()) : text.bytes().find(separator.bytes());
  if (at == std::string::npos) {
    if (kFromRight) return Value::tuple({like(self, {}), like(self, {}), self});
    return Value::tuple({self, like(self, {}), like(self, {})});
  }
  const std::size_t after = at + separator.size();
  return Value::tuple({like(self, text.range(0, at)), like(self, text.range(at, after)),
                       like(self, text.range(after, text.size()))});
}

/// The part of the text between the optional bounds `start` and `stop`, in characters, and the
/// number of characters before it.
std::pair<Text, std::size_t> window(const Value& self, const BoundArgs& bound, std::size_t start,
                                    std::size_t stop) {
  if (bound[start] == nullptr && bound[stop] == nullptr) return {text_of(self), 0};
  const Value first = bound[start] == nullptr ? Value() : *bound[start];
  const Value last = bound[stop] == nullptr ? Value() : *bound[stop];
  const Value before = get_slice(self, Value(), first, Value());
  const Value part = get_slice(self, first, last, Value());
  return {text_of(part), first.is_none() ? 0 : count_chars(text_of(before).bytes())};
}

template <bool kAtEnd>
Value affix_method(Runtime&, const Value& self, const Args& args) {
  const BoundArgs bound(kAtEnd ? "endswith" : "startswith", args, {"prefix", "start", "end"});
  const Text text = window(self, bound, 1, 2).first;
  const auto matches = [&](const Value& affix) {
    const std::string& wanted = text_of(affix).bytes();
    const std::string_view bytes = text.bytes();
    return kAtEnd ? bytes.ends_with(wanted) : bytes.starts_with(wanted);
  };
  const Value& affix = bound.required(0);
  const Sequence* tuple = affix.as_sequence();
  if (tuple == nullptr || tuple->flavor != Flavor::kTuple) return Value::boolean(matches(affix));
  return Value::boolean(std::any_of(tuple->items.begin(), tuple->items.end(), matches));
}

template <bool kFromRight, bool kMustFind>
Value find_method_body(Runtime&, const Value& self, const Args& args) {
  const BoundArgs bound("find", args, {"sub", "start", "end"});
  const auto [text, before] = window(self, bound, 1, 2);
  const std::string& wanted = text_of(bound.required(0)).bytes();
  const std::size_t at = kFromRight ? text.bytes().rfind(wanted) : text.bytes().find(wanted);
  if (at == std::string::npos) {
    if (kMustFind) throw TemplateError("substring not found");
    return Value::integer(-1);
  }
  const std::size_t inside = count_chars(std::string_view(text.bytes()).substr(0, at));
  return Value::integer(static_cast<Int>(before) + static_cast<Int>(inside));
}

Value count_method(Runtime&, const Value& self, const Args& args) {
  const BoundArgs bound("count", args, {"sub", "start", "end"});
  const Text text = window(self, bound, 1, 2).first;
  const std::string& wanted = text_of(bound.required(0)).bytes();
  if (wanted.empty()) return Value::integer(static_cast<Int>(count_chars(text.bytes())) + 1);
  Int count = 0;
  for (std::size_t at = text.bytes().find(wanted); at != std::string::npos;
       at = text.bytes().find(wanted, at + wanted.size())) {
    ++count;
  }
  return Value::integer(count);
}

Value replace_method(Runtime&, const Value& self, const Args& args) {
  const BoundArgs bound("replace", args, {"old", "new", "count"});
  const std::int64_t most = limit(bound.integer(2, -1));
  const Value& to = bound.required(1);
  const bool escapes = self.is_markup() && !to.is_markup();
  return like(self, replace(text_of(self), text_of(bound.required(0)).bytes(),
                            escapes ? escape_html(text_of(to)) : text_of(to), most));
}

Value join_method(Runtime&, const Value& self, const Args& args) {
  const BoundArgs bound("join", args, {"iterable"});
  Text result;
  bool first = true;
  for (const Value& item : iterate(bound.required(0))) {
    if (!first) result.append(text_of(self));
    first = false;
    const Text& text = text_of(item);
    result.append(self.is_markup() && !item.is_markup() ? escape_html(text) : text);
  }
  return like(self, std::move(result));
}

template <Side kFill>
Value pad_method(Runtime&, const Value& self, const Args& args) {
  const BoundArgs bound("pad", args, {"width", "fillchar"});
  std::string_view fill = " ";
  if (bound[1] != nullptr) fill = text_of(*bound[1]).bytes();
  if (count_chars(fill) != 1) throw TemplateError("the fill character must be one character long");
  bound.required(0);
  return like(self, pad(text_of(self), limit(bound.integer(0, 0)), fill, kFill));
}

Value zfill_method(Runtime&, const Value& self, const Args& args) {
  const BoundArgs bound("zfill", args, {"width"});
  bound.required(0);
  const Text& text = text_of(self);
  const bool has_sign = !text.empty() && (text.bytes()[0] == '-' || text.bytes()[0] == '+');
  Text result = text.range(0, has_sign ? 1 : 0);
  result.append(pad(text.range(has_sign ? 1 : 0, text.size()),
                    limit(bound.integer(0, 0)) - (has_sign ? 1 : 0), "0", Side::kLeft));
  return like(self, std::move(result));
}

template <bool kSuffix>
Value remove_affix(Runtime&, const Value& self, const Args& args) {
  const BoundArgs bound("removeprefix", args, {"affix"});
  const Text& text = text_of(self);
  const std::string_view affix = text_of(bound.required(0)).bytes();
  const std::string_view bytes = text.bytes();
  if (kSuffix && bytes.ends_with(affix))
    return like(self, text.range(0, text.size() - affix.size()));
  if (!kSuffix && bytes.starts_with(affix))
    return like(self, text.range(affix.size(), text.size()));
  return self;
}

Value splitlines_method(Runtime&, const Value& self, const Args& args) {
  const BoundArgs bound("splitlines", args, {"keepends"});
  return texts(self, split_lines(text_of(self), bound.flag(0, false)));
}

/// str.isdigit and its kind: every character passes, and there is one.
template <bool (*kAccepts)(char32_t)>
Value all_chars(Runtime&, const Value& self, const Args&) {
  const std::string& bytes = text_of(self).bytes();
  for (std::size_t at = 0; at < bytes.size();) {
    const CodePoint c = decode_at(bytes, at);
    if (!kAccepts(c.value)) return Value::boolean(false);
    at += c.size;
  }
  return Value::boolean(!bytes.empty());
}

bool is_ascii_digit(char32_t c) {
  return c >= U'0' && c <= U'9';
}
bool is_alnum(char32_t c) {
  return is_alpha(c) || is_ascii_digit(c);
}

template <bool kUpper>
Value is_cased(Runtime& runtime, const Value& self, const Args&) {
  return Value::boolean(runtime.call_test(kUpper ? "upper" : "lower", self, {}));
}

Value format_method(Runtime&, const Value& self, const Args& args) {
  return like(self, format_braces(text_of(self), args));
}

const Methods& string_methods() {
  static const Methods methods{
      {"strip", strip_method<Side::kBoth>},
      {"lstrip", strip_method<Side::kLeft>},
      {"rstrip", strip_method<Side::kRight>},
      {"split", split_method<false>},
      {"rsplit", split_method<true>},
      {"partition", partition_method<false>},
      {"rpartition", partition_method<true>},
      {"splitlines", splitlines_method},
      {"startswith", affix_method<false>},
      {"endswith", affix_method<true>},
      {"removeprefix", remove_affix<false>},
      {"removesuffix", remove_affix<true>},
      {"find", find_method_body<false, false>},
      {"rfind", find_method_body<true, false>},
      {"index", find_method_body<false, true>},
      {"rindex", find_method_body<true, true>},
      {"count", count_method},
      {"replace", replace_method},
      {"join", join_method},
      {"center", pad_method<Side::kBoth>},
      {"rjust", pad_method<Side::kLeft>},
      {"ljust", pad_method<Side::kRight>},
      {"zfill", zfill_method},
      {"isdigit", all_chars<is_ascii_digit>},
      {"isdecimal", all_chars<is_ascii_digit>},
      {"isnumeric", all_chars<is_ascii_digit>},
      {"isalpha", all_chars<is_alpha>},
      {"isalnum", all_chars<is_alnum>},
      {"isspace", all_chars<is_space>},
      {"isupper", is_cased<true>},
      {"islower", is_cased<false>},
      {"format", format_method},
      {"upper", [](Runtime&, const Value& v, const Args&) { return like(v, upper(text_of(v))); }},
      {"lower", [](Runtime&, const Value& v, const Args&) { return like(v, lower(text_of(v))); }},
      {"casefold",
       [](Runtime&, const Value& v, const Args&) { return like(v, lower(text_of(v))); }},
      {"capitalize",
       [](Runtime&, const Value& v, const Args&) { return like(v, capitalize(text_of(v))); }},
      {"title",
       [](Runtime&, const Value& v, const Args&) { return like(v, title(text_of(v), true)); }},
  };
  return methods;
}

Value view(Flavor flavor, std::vector<Value> items) {
  return Value(
      std::shared_ptr<const Sequence>(std::make_shared<Sequence>(flavor, std::move(items))));
}

const Methods& dict_methods() {
  static const Methods methods{
      {"get",
       [](Runtime&, const Value& self, const Args& args) {
         const BoundArgs bound("get", args, {"key", "default"});
         const Value* found = self.as_dict()->find(bound.required(0));
         if (found != nullptr) return *found;
         return bound[1] != nullptr ? *bound[1] : Value();
       }},
      {"items",
       [](Runtime& runtime, const Value& self, const Args&) {
         std::vector<Value> items;
         runtime.charge(self.as_dict()->entries.size());
         for (const auto& [key, value] : self.as_dict()->entries) {
           items.push_back(Value::tuple({key, value}));
         }
         return view(Flavor::kItems, std::move(items));
       }},
      {"keys", [](Runtime&, const Value& self,
                  const Args&) { return view(Flavor::kKeys, iterate(self).vector()); }},
      {"values",
       [](Runtime&, const Value& self, const Args&) {
         std::vector<Value> items;
         for (const auto& entry : self.as_dict()->entries)
           items.push_back(entry.second);
         return view(Flavor::kValues, std::move(items));
       }},
      {"copy", [](Runtime&, const Value& self, const Args&) { return self; }},
  };
  return methods;
}

const Methods& list_methods() {
  static const Methods methods{
      {"index",
       [](Runtime&, const Value& self, const Args& args) {
         const BoundArgs bound("index", args, {"value"});
         const auto& items = self.as_sequence()->items;
         for (std::size_t i = 0; i < items.size(); ++i) {
           if (equal(items[i], bound.required(0))) return Value::integer(static_cast<Int>(i));
         }
         throw TemplateError("the value is not in the list");
       }},
      {"count",
       [](Runtime&, const Value& self, const Args& args) {
         const BoundArgs bound("count", args, {"value"});
         Int count = 0;
         for (const Value& item : self.as_sequence()->items) {
           if (equal(item, bound.required(0))) ++count;
         }
         return Value::integer(count);
       }},
  };
  return methods;
}

const Methods& loop_methods() {
  static const Methods methods{
      {"cycle",
       [](Runtime&, const Value& self, const Args& args) {
         if (args.positional.empty()) throw TemplateError("no items for cycling given");
         const auto& loop = *std::get<std::shared_ptr<LoopState>>(self.storage());
         return args.positional[loop.index0 % args.positional.size()];
       }},
  };
  return methods;
}

}  // namespace

std::shared_ptr<const Callable> find_method(const Value& self, std::string_view name) {
  const Methods* methods = nullptr;
  if (self.is_string()) methods = &string_methods();
  if (self.as_dict() != nullptr) methods = &dict_methods();
  if (self.is<std::shared_ptr<LoopState>>()) methods = &loop_methods();
  if (const Sequence* sequence = self.as_sequence()) {
    if (sequence->indexable()) methods = &list_methods();
    if (sequence->flavor == Flavor::kList && name == "copy") methods = &dict_methods();
  }
  if (methods == nullptr) return nullptr;
  const auto found = methods->find(name);
  if (found == methods->end()) return nullptr;
  return std::make_shared<Method>(std::string(name), found->second, self);
}

}  // namespace thaw::text::jinja
