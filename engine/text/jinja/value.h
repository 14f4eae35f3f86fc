#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "engine/text/jinja/text.h"

namespace thaw::text::jinja {

/// Wide enough for what JSON holds; arithmetic that leaves it is an error (Python's ints never
/// end).
using Int = __int128;

/// Containers nest no deeper and hold, all levels together, no more values than this, so that every
/// walk over a value is bounded.
inline constexpr int kMaxDepth = 200;
inline constexpr std::size_t kMaxWeight = 2'000'000;

class Callable;
class LoopState;
struct Dict;
struct Namespace;
struct Sequence;

/// What Jinja's default Undefined is: prints as nothing, fails when anything else is asked of it.
struct Undefined {
  std::shared_ptr<const std::string> message;
};
struct None {};
struct String {
  std::shared_ptr<const Text> text;
  bool markup = false;  ///< came through `safe`: Markup, which escapes what is added to it
};

/// A Python value as templates see it. Everything but namespaces and iterators is immutable, as in
/// the immutable sandbox; copies share.
class Value {
 public:
  using Storage =
      std::variant<Undefined, None, bool, Int, double, String, std::shared_ptr<const Sequence>,
                   std::shared_ptr<const Dict>, std::shared_ptr<Namespace>,
                   std::shared_ptr<const Callable>, std::shared_ptr<LoopState>>;

  Value() : storage_(None{}) {}
  template <typename T>
  explicit Value(T storage) : storage_(std::move(storage)) {}

  static Value undefined(std::string message);
  static Value boolean(bool value) { return Value(value); }
  static Value integer(Int value) { return Value(value); }
  static Value real(double value) { return Value(value); }
  static Value text(Text text, bool markup = false);
  static Value text(std::string bytes, Origin origin) {
    return text(Text(std::move(bytes), origin));
  }
  static Value list(std::vector<Value> items);
  static Value tuple(std::vector<Value> items);
  /// What Python returns from a generator: can be walked once.
  static Value iterator(std::vector<Value> items);
  /// All text in it is marked `origin`. Errors: TemplateError when nested past kMaxDepth.
  static Value from_json(const nlohmann::ordered_json& json, Origin origin);

  template <typename T>
  bool is() const {
    return std::holds_alternative<T>(storage_);
  }
  bool is_undefined() const { return is<Undefined>(); }
  bool is_none() const { return is<None>(); }
  bool is_string() const { return is<String>(); }
  /// The list or dictionary and so on inside, or null.
  const Text* as_text() const;
  const Sequence* as_sequence() const;
  const Dict* as_dict() const;
  /// bool counts as a number, as in Python.
  bool is_int() const { return is<Int>() || is<bool>(); }
  bool is_number() const { return is_int() || is<double>(); }
  bool is_markup() const;
  Int to_int() const;  ///< REQUIRES: is_int()
  double to_double() const;  ///< REQUIRES: is_number()

  const Storage& storage() const { return storage_; }
  bool truthy() const;
  /// Python's type name: "str", "dict", ...
  std::string type_name() const;
  /// Containers below, and values inside; 1 for what holds none.
  int depth() const;
  std::size_t weight() const;

 private:
  Storage storage_;
};

struct Sequence {
  enum class Flavor { kList, kTuple, kRange, kKeys, kValues, kItems, kIterator };

  Sequence(Flavor flavor, std::vector<Value> items);

  Flavor flavor;
  std::vector<Value> items;
  mutable bool taken = false;  ///< an iterator that was walked
  int depth = 1;
  std::size_t weight = 1;

  bool indexable() const {
    return flavor == Flavor::kList || flavor == Flavor::kTuple || flavor == Flavor::kRange;
  }
};

/// Keeps insertion order. Keys are whatever Python can hash.
struct Dict {
  std::vector<std::pair<Value, Value>> entries;
  int depth = 1;
  std::size_t weight = 1;

  void set(Value key, Value value);
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;

 private:
  std::size_t position(const Value& key) const;  ///< entries.size(): absent
  std::size_t position(std::string_view key) const;

  std::unordered_map<std::string_view, std::size_t> index_;  ///< string keys, once there are many
};

struct Namespace {
  std::vector<std::pair<std::string, Value>> attributes;

  void set(std::string_view name, Value value);
  const Value* find(std::string_view name) const;
};

/// ==. Lists, tuples and dicts by content; 1 == 1.0 == True.
bool equal(const Value& left, const Value& right);
/// Negative, zero, positive. Errors: TemplateError for types Python cannot order.
int compare(const Value& left, const Value& right, const char* operation);

}  // namespace thaw::text::jinja
