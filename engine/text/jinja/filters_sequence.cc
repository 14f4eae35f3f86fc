#include <algorithm>
#include <cstdlib>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/filters.h"
#include "engine/text/jinja/print.h"
#include "engine/text/jinja/sort.h"
#include "engine/text/jinja/text_ops.h"
#include "engine/text/jinja/unicode.h"

// Filters on lists, dicts and iterators.
namespace thaw::text::jinja {
namespace {

using Flavor = Sequence::Flavor;

/// An attribute path such as "function.name" or "0.id", followed through items.
class AttributePath {
 public:
  explicit AttributePath(const Value& attribute) {
    if (attribute.is_none()) return;
    const Text* text = attribute.as_text();
    if (text == nullptr) {
      parts_.push_back(attribute);
      return;
    }
    for (Text& part : split(*text, ".", -1)) {
      const std::string& bytes = part.bytes();
      const bool is_index = !bytes.empty() && bytes.size() < 18 &&
                            bytes.find_first_not_of("0123456789") == std::string::npos;
      parts_.push_back(is_index ? Value::integer(std::atoll(bytes.c_str()))
                                : Value::text(std::move(part)));
    }
  }

  Value get(Value item, const Value* otherwise = nullptr) const {
    for (const Value& part : parts_) {
      item = get_item(item, part);
      if (otherwise != nullptr && item.is_undefined()) item = *otherwise;
    }
    return item;
  }

 private:
  std::vector<Value> parts_;
};

AttributePath path_of(const Value* attribute) {
  return AttributePath(attribute == nullptr ? Value() : *attribute);
}

Value folded(Value value, bool case_sensitive) {
  if (case_sensitive || !value.is_string()) return value;
  return Value::text(lower(*value.as_text()));
}

Value length_filter(Runtime&, const Value& input, const Args&) {
  std::size_t length = 0;
  if (const Text* text = input.as_text()) {
    length = count_chars(text->bytes());
  } else if (const Dict* dict = input.as_dict()) {
    length = dict->entries.size();
  } else if (const Sequence* sequence = input.as_sequence();
             sequence != nullptr && sequence->flavor != Flavor::kIterator) {
    length = sequence->items.size();
  } else if (!input.is_undefined()) {
    throw TemplateError("object of type '" + input.type_name() + "' has no len()");
  }
  return Value::integer(static_cast<Int>(length));
}

Value list_filter(Runtime&, const Value& input, const Args&) {
  return Value::list(iterate(input).vector());
}

Value join_filter(Runtime&, const Value& input, const Args& args) {
  const BoundArgs bound("join", args, {"d", "attribute"});
  const Text separator = bound[0] == nullptr ? Text() : to_text(*bound[0]);
  const AttributePath path = path_of(bound[1]);
  Text result;
  bool first = true;
  for (const Value& item : iterate(input)) {
    if (!first) result.append(separator);
    first = false;
    append_text(result, path.get(item));
  }
  return Value::text(std::move(result));
}

Value first_filter(Runtime&, const Value& input, const Args&) {
  const auto items = iterate(input);
  if (!items.vector().empty()) return items.vector().front();
  return Value::undefined("No first item, sequence was empty.");
}

Value last_filter(Runtime&, const Value& input, const Args&) {
  if (const Sequence* s = input.as_sequence(); s != nullptr && s->flavor == Flavor::kIterator) {
    throw TemplateError("'generator' object is not reversible");
  }
  const auto items = iterate(input);
  if (!items.vector().empty()) return items.vector().back();
  return Value::undefined("No last item, sequence was empty.");
}

Value reverse_filter(Runtime&, const Value& input, const Args&) {
  if (const Text* text = input.as_text()) return Value::text(reverse(*text), input.is_markup());
  std::vector<Value> items = iterate(input).vector();
  std::reverse(items.begin(), items.end());
  return Value::iterator(std::move(items));
}

Value items_filter(Runtime&, const Value& input, const Args&) {
  std::vector<Value> pairs;
  if (!input.is_undefined()) {
    const Dict* dict = input.as_dict();
    if (dict == nullptr) throw TemplateError("Can only get item pairs from a mapping.");
    for (const auto& [key, value] : dict->entries)
      pairs.push_back(Value::tuple({key, value}));
  }
  return Value::iterator(std::move(pairs));
}

/// What map, select and their kind walk: anything false, None included, counts as empty.
Items iterate_or_nothing(const Value& input) {
  return iterate(input.truthy() ? input : Value::undefined(""));
}

/// Sorts by a key made of each item; stable, also when reversed, as Python's sorted.
template <typename Key>
std::vector<Value> sorted(Runtime& runtime, const std::vector<Value>& items, bool reversed,
                          Key&& key) {
  std::vector<std::pair<Value, const Value*>> keyed;
  keyed.reserve(items.size());
  for (const Value& item : items)
    keyed.emplace_back(key(item), &item);
  merge_sort(keyed, [&](const auto& left, const auto& right) {
    runtime.charge(1);
    return reversed ? compare(right.first, left.first, "<") < 0
                    : compare(left.first, right.first, "<") < 0;
  });
  std::vector<Value> result;
  result.reserve(items.size());
  for (const auto& entry : keyed)
    result.push_back(*entry.second);
  return result;
}

Value sort_filter(Runtime& runtime, const Value& input, const Args& args) {
  const BoundArgs bound("sort", args, {"reverse", "case_sensitive", "attribute"});
  std::vector<AttributePath> paths;
  if (bound[2] != nullptr && bound[2]->is_string()) {
    for (Text& part : split(*bound[2]->as_text(), ",", -1)) {
      paths.emplace_back(Value::text(std::move(part)));
    }
  } else {
    paths.push_back(path_of(bound[2]));
  }
  const bool case_sensitive = bound.flag(1, false);
  return Value::list(
      sorted(runtime, iterate(input).vector(), bound.flag(0, false), [&](const Value& item) {
        std::vector<Value> parts;
        parts.reserve(paths.size());
        for (const AttributePath& path : paths) {
          parts.push_back(folded(path.get(item), case_sensitive));
        }
        return Value::list(std::move(parts));
      }));
}

Value dictsort_filter(Runtime& runtime, const Value& input, const Args& args) {
  const BoundArgs bound("dictsort", args, {"case_sensitive", "by", "reverse"});
  const std::string by = bound[1] == nullptr ? "key" : to_text(*bound[1]).bytes();
  if (by != "key" && by != "value") {
    throw TemplateError("You can only sort by either \"key\" or \"value\"");
  }
  const Dict* dict = input.as_dict();
  if (dict == nullptr) fail_type("dictsort needs a mapping, not", input);
  std::vector<Value> pairs;
  pairs.reserve(dict->entries.size());
  for (const auto& [key, value] : dict->entries)
    pairs.push_back(Value::tuple({key, value}));
  const std::size_t part = by == "key" ? 0 : 1;
  const bool case_sensitive = bound.flag(0, false);
  return Value::list(sorted(runtime, pairs, bound.flag(2, false), [&](const Value& pair) {
    return folded(pair.as_sequence()->items[part], case_sensitive);
  }));
}

Value unique_filter(Runtime& runtime, const Value& input, const Args& args) {
  const BoundArgs bound("unique", args, {"case_sensitive", "attribute"});
  const AttributePath path = path_of(bound[1]);
  Dict seen;
  std::vector<Value> kept;
  for (const Value& item : iterate(input)) {
    Value key = folded(path.get(item), bound.flag(0, false));
    runtime.charge(1);
    if (seen.find(key) != nullptr) continue;
    seen.set(std::move(key), Value());
    kept.push_back(item);
  }
  return Value::iterator(std::move(kept));
}

template <bool kLargest>
Value extreme_filter(Runtime&, const Value& input, const Args& args) {
  const BoundArgs bound("min", args, {"case_sensitive", "attribute"});
  const AttributePath path = path_of(bound[1]);
  const bool case_sensitive = bound.flag(0, false);
  const auto items = iterate(input);
  if (items.vector().empty()) return Value::undefined("No aggregated item, sequence was empty.");
  const Value* best = nullptr;
  Value best_key;
  for (const Value& item : items.vector()) {
    Value key = folded(path.get(item), case_sensitive);
    const int order = best == nullptr ? 0 : compare(key, best_key, kLargest ? ">" : "<");
    if (best != nullptr && (kLargest ? order <= 0 : order >= 0)) continue;
    best = &item;
    best_key = std::move(key);
  }
  return *best;
}

Value sum_filter(Runtime&, const Value& input, const Args& args) {
  const BoundArgs bound("sum", args, {"attribute", "start"});
  const AttributePath path = path_of(bound[0]);
  Value total = bound[1] == nullptr ? Value::integer(0) : *bound[1];
  for (const Value& item : iterate(input))
    total = add(total, path.get(item));
  return total;
}

Value map_filter(Runtime& runtime, const Value& input, const Args& args) {
  std::vector<Value> results;
  if (args.positional.empty() && !args.named.empty()) {
    const BoundArgs bound("map", args, {"attribute", "default"});
    if (bound[0] == nullptr) throw TemplateError("map requires a filter argument");
    const AttributePath path = path_of(bound[0]);
    const Value* otherwise = bound[1] != nullptr && !bound[1]->is_none() ? bound[1] : nullptr;
    for (const Value& item : iterate_or_nothing(input))
      results.push_back(path.get(item, otherwise));
    return Value::iterator(std::move(results));
  }
  if (args.positional.empty()) throw TemplateError("map requires a filter argument");
  const Text name = to_text(args.positional[0]);
  const Args rest{{args.positional.begin() + 1, args.positional.end()}, args.named};
  for (const Value& item : iterate_or_nothing(input)) {
    results.push_back(runtime.call_filter(name.bytes(), item, rest));
  }
  return Value::iterator(std::move(results));
}

/// select, reject, selectattr and rejectattr: the items for which a test holds, or not.
template <bool kWanted, bool kByAttribute>
Value select_filter(Runtime& runtime, const Value& input, const Args& args) {
  const std::size_t skip = kByAttribute ? 1 : 0;
  if (args.positional.size() < skip) throw TemplateError("Missing parameter for attribute name");
  const AttributePath path = path_of(kByAttribute ? &args.positional[0] : nullptr);
  const bool has_test = args.positional.size() > skip;
  Text name;
  Args rest;
  if (has_test) {
    name = to_text(args.positional[skip]);
    rest.positional.assign(args.positional.begin() + static_cast<std::ptrdiff_t>(skip) + 1,
                           args.positional.end());
    rest.named = args.named;
  }
  std::vector<Value> kept;
  for (const Value& item : iterate_or_nothing(input)) {
    runtime.charge(1);
    const Value subject = path.get(item);
    const bool holds = has_test ? runtime.call_test(name.bytes(), subject, rest) : subject.truthy();
    if (holds == kWanted) kept.push_back(item);
  }
  return Value::iterator(std::move(kept));
}

Value batch_filter(Runtime&, const Value& input, const Args& args) {
  const BoundArgs bound("batch", args, {"linecount", "fill_with"});
  bound.required(0);
  const Int size = bound.integer(0, 1);
  if (size < 1 || size > static_cast<Int>(kMaxWeight)) {
    throw TemplateError("batch needs a size of at least 1");
  }
  std::vector<Value> batches;
  std::vector<Value> current;
  for (const Value& item : iterate(input)) {
    if (static_cast<Int>(current.size()) == size) {
      batches.push_back(Value::list(std::exchange(current, {})));
    }
    current.push_back(item);
  }
  if (!current.empty()) {
    if (bound[1] != nullptr && !bound[1]->is_none()) {
      current.resize(static_cast<std::size_t>(size), *bound[1]);
    }
    batches.push_back(Value::list(std::move(current)));
  }
  return Value::iterator(std::move(batches));
}

Value groupby_filter(Runtime& runtime, const Value& input, const Args& args) {
  const BoundArgs bound("groupby", args, {"attribute", "default", "case_sensitive"});
  const AttributePath path(bound.required(0));
  const Value* otherwise = bound[1] != nullptr && !bound[1]->is_none() ? bound[1] : nullptr;
  const bool case_sensitive = bound.flag(2, false);
  const auto key = [&](const Value& item) {
    return folded(path.get(item, otherwise), case_sensitive);
  };
  const std::vector<Value> items = sorted(runtime, iterate(input).vector(), false, key);
  std::vector<Value> groups;
  for (std::size_t begin = 0; begin < items.size();) {
    std::size_t end = begin + 1;
    while (end < items.size() && equal(key(items[end]), key(items[begin])))
      ++end;
    std::vector<Value> group(items.begin() + static_cast<std::ptrdiff_t>(begin),
                             items.begin() + static_cast<std::ptrdiff_t>(end));
    Value grouper = path.get(items[begin], otherwise);
    groups.push_back(Value::tuple({std::move(grouper), Value::list(std::move(group))}));
    begin = end;
  }
  return Value::list(std::move(groups));
}

}  // namespace

const std::vector<std::pair<std::string_view, FilterFunction>>& sequence_filters() {
  static const std::vector<std::pair<std::string_view, FilterFunction>> filters{
      {"length", length_filter},
      {"count", length_filter},
      {"list", list_filter},
      {"join", join_filter},
      {"first", first_filter},
      {"last", last_filter},
      {"reverse", reverse_filter},
      {"items", items_filter},
      {"sort", sort_filter},
      {"dictsort", dictsort_filter},
      {"unique", unique_filter},
      {"min", extreme_filter<false>},
      {"max", extreme_filter<true>},
      {"sum", sum_filter},
      {"map", map_filter},
      {"select", select_filter<true, false>},
      {"reject", select_filter<false, false>},
      {"selectattr", select_filter<true, true>},
      {"rejectattr", select_filter<false, true>},
      {"batch", batch_filter},
      {"groupby", groupby_filter},
  };
  return filters;
}

}  // namespace thaw::text::jinja
