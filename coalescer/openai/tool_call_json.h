#pragma once

#include <cstdint>
#include <string>

#include "coalescer/openai/tool_call_reader.h"

namespace thaw::coalescer {

/// Space, tab, line feed, carriage return.
bool is_json_space(char c);

/// Finds the end of one JSON value. It checks brackets and strings, not all of the grammar.
class JsonValueEnd {
 public:
  enum class Result : std::uint8_t { kInside, kLast, kBehind, kWrong };
  /// kLast: `c` ends the value. kBehind: the value (a number or a word) ended before `c`.
  Result push(char c);

 private:
  static constexpr int kMaxDepth = 100;
  std::string open_;  // brackets, outermost first
  bool in_string_ = false;
  bool escaped_ = false;
  bool in_word_ = false;
};

/// One object `{"name": ..., "arguments": {...}}`, keys in any order; `parameters` and `args` mean
/// the same, other keys are passed over, missing arguments are none. Arguments leave as they come
/// once the name is known.
class JsonCallReader final : public CallReader {
 public:
  explicit JsonCallReader(CallSink* sink) : sink_(sink) {}
  ReadState push(char c) override;
  bool may_end() const override { return at_ == At::kEnd; }

 private:
  enum class At : std::uint8_t { kObject, kKey, kInKey, kColon, kValue, kInValue, kNext, kEnd };
  enum class Value : std::uint8_t { kName, kArguments, kArgumentsText, kNothing, kOther };

  ReadState begin_value(char c);
  ReadState in_value(char c);
  ReadState end_value();
  ReadState end_object();
  void add_arguments(std::string_view json);

  CallSink* sink_;
  At at_ = At::kObject;
  std::string token_;  // the key, or a value that is needed as a whole
  std::string key_;
  bool escaped_ = false;
  Value value_ = Value::kOther;
  JsonValueEnd value_end_;
  bool begun_ = false;
  bool has_arguments_ = false;
  std::string early_arguments_;  // that came before the name
};

/// `[{...}, {...}]` of such objects, or one object alone.
class JsonCallListReader final : public CallReader {
 public:
  explicit JsonCallListReader(CallSink* sink) : sink_(sink), call_(sink) {}
  ReadState push(char c) override;
  bool may_end() const override { return at_ == At::kEnd; }

 private:
  enum class At : std::uint8_t { kStart, kItem, kInCall, kNext, kEnd };
  CallSink* sink_;
  JsonCallReader call_;
  bool list_ = false;
  At at_ = At::kStart;
};

}  // namespace thaw::coalescer
