#include "engine/text/jinja/value.h"

#include <algorithm>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/runtime.h"

namespace thaw::text::jinja {
namespace {

constexpr std::size_t kIndexFrom = 16;  // below, a linear look-up is as quick

void add_child(const Value& child, int& depth, std::size_t& weight) {
  depth = std::max(depth, child.depth() + 1);
  weight += child.weight();
  if (depth > kMaxDepth) {
    throw TemplateError("values are nested deeper than " + std::to_string(kMaxDepth) + " levels");
  }
  if (weight > kMaxWeight) {
    throw TemplateError("a list or dict holds more than " + std::to_string(kMaxWeight) + " values");
  }
}

Value value_from_json(const nlohmann::ordered_json& json, Origin origin, int depth) {
  if (depth > kMaxDepth) {
    throw TemplateError("the input is nested deeper than " + std::to_string(kMaxDepth) + " levels");
  }
  switch (json.type()) {
    case nlohmann::ordered_json::value_t::boolean:
      return Value::boolean(json.get<bool>());
    case nlohmann::ordered_json::value_t::number_integer:
      return Value::integer(json.get<std::int64_t>());
    case nlohmann::ordered_json::value_t::number_unsigned:
      return Value::integer(json.get<std::uint64_t>());
    case nlohmann::ordered_json::value_t::number_float:
      return Value::real(json.get<double>());
    case nlohmann::ordered_json::value_t::string:
      return Value::text(json.get_ref<const std::string&>(), origin);
    case nlohmann::ordered_json::value_t::array: {
      std::vector<Value> items;
      items.reserve(json.size());
      for (const auto& item : json)
        items.push_back(value_from_json(item, origin, depth + 1));
      return Value::list(std::move(items));
    }
    case nlohmann::ordered_json::value_t::object: {
      auto dict = std::make_shared<Dict>();
      dict->entries.reserve(json.size());
      for (const auto& [key, item] : json.items()) {
        dict->set(Value::text(key, origin), value_from_json(item, origin, depth + 1));
      }
      return Value(std::shared_ptr<const Dict>(std::move(dict)));
    }
    default:
      return Value();
  }
}

template <typename T>
int order(const T& left, const T& right) {
  return left < right ? -1 : right < left ? 1 : 0;
}

bool equal_dicts(const Dict& left, const Dict& right) {
  if (left.entries.size() != right.entries.size()) return false;
  return std::all_of(left.entries.begin(), left.entries.end(), [&](const auto& entry) {
    const Value* other = right.find(entry.first);
    return other != nullptr && equal(entry.second, *other);
  });
}

bool equal_sequences(const Sequence& left, const Sequence& right) {
  using Flavor = Sequence::Flavor;
  if (&left == &right) return true;
  const auto by_content = [](Flavor f) {
    return f == Flavor::kList || f == Flavor::kTuple || f == Flavor::kRange || f == Flavor::kKeys ||
           f == Flavor::kItems;
  };
  if (left.flavor != right.flavor || !by_content(left.flavor)) return false;
  return std::equal(left.items.begin(), left.items.end(), right.items.begin(), right.items.end(),
                    equal);
}

}  // namespace

Value Value::undefined(std::string message) {
  return Value(Undefined{std::make_shared<const std::string>(std::move(message))});
}

Value Value::text(Text text, bool markup) {
  return Value(String{std::make_shared<const Text>(std::move(text)), markup});
}

Value Value::list(std::vector<Value> items) {
  return Value(std::shared_ptr<const Sequence>(
      std::make_shared<Sequence>(Sequence::Flavor::kList, std::move(items))));
}

Value Value::tuple(std::vector<Value> items) {
  return Value(std::shared_ptr<const Sequence>(
      std::make_shared<Sequence>(Sequence::Flavor::kTuple, std::move(items))));
}

Value Value::iterator(std::vector<Value> items) {
  return Value(std::shared_ptr<const Sequence>(
      std::make_shared<Sequence>(Sequence::Flavor::kIterator, std::move(items))));
}

Value Value::from_json(const nlohmann::ordered_json& json, Origin origin) {
  return value_from_json(json, origin, 0);
}

const Text* Value::as_text() const {
  const auto* string = std::get_if<String>(&storage_);
  return string == nullptr ? nullptr : string->text.get();
}

const Sequence* Value::as_sequence() const {
  const auto* sequence = std::get_if<std::shared_ptr<const Sequence>>(&storage_);
  return sequence == nullptr ? nullptr : sequence->get();
}

const Dict* Value::as_dict() const {
  const auto* dict = std::get_if<std::shared_ptr<const Dict>>(&storage_);
  return dict == nullptr ? nullptr : dict->get();
}

bool Value::is_markup() const {
  const auto* string = std::get_if<String>(&storage_);
  return string != nullptr && string->markup;
}

Int Value::to_int() const {
  if (const bool* value = std::get_if<bool>(&storage_)) return *value ? 1 : 0;
  return std::get<Int>(storage_);
}

double Value::to_double() const {
  if (const double* value = std::get_if<double>(&storage_)) return *value;
  return static_cast<double>(to_int());
}

bool Value::truthy() const {
  if (is_undefined() || is_none()) return false;
  if (is_int()) return to_int() != 0;
  if (const double* value = std::get_if<double>(&storage_)) return *value != 0;
  if (const Text* text = as_text()) return !text->empty();
  if (const Sequence* sequence = as_sequence()) {
    return sequence->flavor == Sequence::Flavor::kIterator || !sequence->items.empty();
  }
  if (const Dict* dict = as_dict()) return !dict->entries.empty();
  return true;
}

std::string Value::type_name() const {
  struct Namer {
    std::string operator()(const Undefined&) const { return "Undefined"; }
    std::string operator()(const None&) const { return "NoneType"; }
    std::string operator()(bool) const { return "bool"; }
    std::string operator()(Int) const { return "int"; }
    std::string operator()(double) const { return "float"; }
    std::string operator()(const String& s) const { return s.markup ? "Markup" : "str"; }
    std::string operator()(const std::shared_ptr<const Sequence>& s) const {
      static constexpr const char* kNames[] = {"list",        "tuple",      "range",    "dict_keys",
                                               "dict_values", "dict_items", "generator"};
      return kNames[static_cast<int>(s->flavor)];
    }
    std::string operator()(const std::shared_ptr<const Dict>&) const { return "dict"; }
    std::string operator()(const std::shared_ptr<Namespace>&) const { return "Namespace"; }
    std::string operator()(const std::shared_ptr<const Callable>&) const { return "function"; }
    std::string operator()(const std::shared_ptr<LoopState>&) const { return "LoopContext"; }
  };
  return std::visit(Namer{}, storage_);
}

int Value::depth() const {
  if (const Sequence* sequence = as_sequence()) return sequence->depth;
  if (const Dict* dict = as_dict()) return dict->depth;
  if (const auto* loop = std::get_if<std::shared_ptr<LoopState>>(&storage_)) {
    return (*loop)->items->depth + 1;
  }
  if (const auto* callable = std::get_if<std::shared_ptr<const Callable>>(&storage_)) {
    return (*callable)->depth();
  }
  return 0;
}

std::size_t Value::weight() const {
  if (const Sequence* sequence = as_sequence()) return sequence->weight;
  if (const Dict* dict = as_dict()) return dict->weight;
  return 1;
}

Sequence::Sequence(Flavor flavor, std::vector<Value> items)
    : flavor(flavor), items(std::move(items)) {
  for (const Value& item : this->items)
    add_child(item, depth, weight);
}

void Dict::set(Value key, Value value) {
  if (key.as_dict() != nullptr ||
      (key.as_sequence() != nullptr && key.as_sequence()->flavor == Sequence::Flavor::kList)) {
    throw TemplateError("unhashable type: '" + key.type_name() + "'");
  }
  add_child(key, depth, weight);
  add_child(value, depth, weight);
  const std::size_t present = position(key);
  if (present < entries.size()) {
    entries[present].second = std::move(value);
    return;
  }
  entries.emplace_back(std::move(key), std::move(value));
  if (entries.size() < kIndexFrom) return;
  const std::size_t first = index_.empty() ? 0 : entries.size() - 1;
  for (std::size_t i = first; i < entries.size(); ++i) {
    if (const Text* text = entries[i].first.as_text()) index_.emplace(text->bytes(), i);
  }
}

const Value* Dict::find(const Value& key) const {
  const std::size_t at = position(key);
  return at < entries.size() ? &entries[at].second : nullptr;
}

const Value* Dict::find(std::string_view key) const {
  const std::size_t at = position(key);
  return at < entries.size() ? &entries[at].second : nullptr;
}

std::size_t Dict::position(const Value& key) const {
  if (const Text* text = key.as_text()) return position(std::string_view(text->bytes()));
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (equal(entries[i].first, key)) return i;
  }
  return entries.size();
}

std::size_t Dict::position(std::string_view key) const {
  if (!index_.empty()) {
    const auto found = index_.find(key);
    return found == index_.end() ? entries.size() : found->second;
  }
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const Text* text = entries[i].first.as_text();
    if (text != nullptr && text->bytes() == key) return i;
  }
  return entries.size();
}

void Namespace::set(std::string_view name, Value value) {
  for (auto& [present, held] : attributes) {
    if (present == name) {
      held = std::move(value);
      return;
    }
  }
  attributes.emplace_back(name, std::move(value));
}

const Value* Namespace::find(std::string_view name) const {
  for (const auto& [present, held] : attributes) {
    if (present == name) return &held;
  }
  return nullptr;
}

bool equal(const Value& left, const Value& right) {
  if (left.is_number() && right.is_number()) {
    if (left.is_int() && right.is_int()) return left.to_int() == right.to_int();
    return left.to_double() == right.to_double();
  }
  if (left.storage().index() != right.storage().index()) return false;
  if (left.is_undefined() || left.is_none()) return true;
  if (left.is_string()) return left.as_text()->bytes() == right.as_text()->bytes();
  if (left.as_sequence() != nullptr) {
    return equal_sequences(*left.as_sequence(), *right.as_sequence());
  }
  if (left.as_dict() != nullptr) return equal_dicts(*left.as_dict(), *right.as_dict());
  if (const auto* names = std::get_if<std::shared_ptr<Namespace>>(&left.storage())) {
    return *names == std::get<std::shared_ptr<Namespace>>(right.storage());
  }
  return false;
}

int compare(const Value& left, const Value& right, const char* operation) {
  if (left.is_number() && right.is_number()) {
    if (left.is_int() && right.is_int()) return order(left.to_int(), right.to_int());
    return order(left.to_double(), right.to_double());
  }
  if (left.is_string() && right.is_string()) {
    return order(left.as_text()->bytes(), right.as_text()->bytes());
  }
  for (const Value* side : {&left, &right}) {
    if (const auto* undefined = std::get_if<Undefined>(&side->storage())) {
      throw TemplateError(*undefined->message);
    }
  }
  const Sequence* l = left.as_sequence();
  const Sequence* r = right.as_sequence();
  using Flavor = Sequence::Flavor;
  if (l != nullptr && r != nullptr && l->flavor == r->flavor &&
      (l->flavor == Flavor::kList || l->flavor == Flavor::kTuple)) {
    for (std::size_t i = 0; i < l->items.size() && i < r->items.size(); ++i) {
      if (!equal(l->items[i], r->items[i])) return compare(l->items[i], r->items[i], operation);
    }
    return order(l->items.size(), r->items.size());
  }
  throw TemplateError("'" + std::string(operation) + "' not supported between instances of '" +
                      left.type_name() + "' and '" + right.type_name() + "'");
}

}  // namespace thaw::text::jinja
