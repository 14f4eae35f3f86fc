#include "coalescer/openai/tool_call_json.h"

#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

namespace thaw::coalescer {
namespace {

/// The text of a JSON string with its quotes.
std::optional<std::string> unquoted(const std::string& token) {
  const auto value = nlohmann::json::parse(token, nullptr, /*allow_exceptions=*/false);
  if (!value.is_string()) return std::nullopt;
  return value.get<std::string>();
}

}  // namespace

bool is_json_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

JsonValueEnd::Result JsonValueEnd::push(char c) {
  if (in_string_) {
    if (escaped_)
      escaped_ = false;
    else if (c == '\\')
      escaped_ = true;
    else if (c == '"')
      in_string_ = false;
    return in_string_ || !open_.empty() ? Result::kInside : Result::kLast;
  }
  const bool is_delimiter = is_json_space(c) || c == ',' || c == ':' || c == '}' || c == ']';
  if (in_word_ && open_.empty()) return is_delimiter ? Result::kBehind : Result::kInside;
  switch (c) {
    case '"':
      in_string_ = true;
      return Result::kInside;
    case '{':
    case '[':
      if (open_.size() >= kMaxDepth) return Result::kWrong;
      open_ += c;
      return Result::kInside;
    case '}':
    case ']':
      if (open_.empty() || open_.back() != (c == '}' ? '{' : '[')) return Result::kWrong;
      open_.pop_back();
      return open_.empty() ? Result::kLast : Result::kInside;
    default:
      break;
  }
  if (!open_.empty()) return Result::kInside;
  if (is_delimiter) return Result::kWrong;
  in_word_ = true;
  return Result::kInside;
}

ReadState JsonCallReader::push(char c) {
  switch (at_) {
    case At::kObject:
      if (is_json_space(c)) return ReadState::kMore;
      if (c != '{') return ReadState::kWrong;
      at_ = At::kKey;
      return ReadState::kMore;
    case At::kKey:
      if (is_json_space(c)) return ReadState::kMore;
      if (c == '}') return end_object();
      if (c != '"') return ReadState::kWrong;
      token_ = c;
      at_ = At::kInKey;
      return ReadState::kMore;
    case At::kInKey: {
      token_ += c;
      if (escaped_) {
        escaped_ = false;
      } else if (c == '\\') {
        escaped_ = true;
      } else if (c == '"') {
        auto key = unquoted(token_);
        if (!key) return ReadState::kWrong;
        key_ = std::move(*key);
        at_ = At::kColon;
      }
      return ReadState::kMore;
    }
    case At::kColon:
      if (is_json_space(c)) return ReadState::kMore;
      if (c != ':') return ReadState::kWrong;
      at_ = At::kValue;
      return ReadState::kMore;
    case At::kValue:
      return is_json_space(c) ? ReadState::kMore : begin_value(c);
    case At::kInValue:
      return in_value(c);
    case At::kNext:
      if (is_json_space(c)) return ReadState::kMore;
      if (c == '}') return end_object();
      if (c != ',') return ReadState::kWrong;
      at_ = At::kKey;
      return ReadState::kMore;
    case At::kEnd:
      break;
  }
  return ReadState::kWrong;
}

ReadState JsonCallReader::begin_value(char c) {
  value_ = Value::kOther;
  if (key_ == "name") {
    if (begun_ || c != '"') return ReadState::kWrong;
    value_ = Value::kName;
  } else if (key_ == "arguments" || key_ == "parameters" || key_ == "args") {
    if (has_arguments_) return ReadState::kWrong;
    if (c == '{')
      value_ = Value::kArguments;
    else if (c == '"')
      value_ = Value::kArgumentsText;
    else if (c == 'n')
      value_ = Value::kNothing;
    else
      return ReadState::kWrong;
    has_arguments_ = value_ != Value::kNothing;
  }
  token_.clear();
  value_end_ = JsonValueEnd();
  at_ = At::kInValue;
  return in_value(c);
}

ReadState JsonCallReader::in_value(char c) {
  const JsonValueEnd::Result result = value_end_.push(c);
  if (result == JsonValueEnd::Result::kWrong) return ReadState::kWrong;
  if (result == JsonValueEnd::Result::kBehind) {
    const ReadState ended = end_value();
    return ended == ReadState::kMore ? push(c) : ended;
  }
  if (value_ == Value::kArguments)
    add_arguments({&c, 1});
  else if (value_ == Value::kName || value_ == Value::kArgumentsText)
    token_ += c;
  return result == JsonValueEnd::Result::kLast ? end_value() : ReadState::kMore;
}

ReadState JsonCallReader::end_value() {
  at_ = At::kNext;
  if (value_ != Value::kName && value_ != Value::kArgumentsText) return ReadState::kMore;
  const auto text = unquoted(token_);
  if (!text) return ReadState::kWrong;
  if (value_ == Value::kArgumentsText) {
    // Some models write the arguments as OpenAI's API has them: JSON text in a string.
    if (!nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false).is_object())
      return ReadState::kWrong;
    add_arguments(*text);
    return ReadState::kMore;
  }
  if (!sink_->begin_call(*text)) return ReadState::kWrong;
  begun_ = true;
  if (!early_arguments_.empty()) sink_->add_arguments(std::exchange(early_arguments_, {}));
  return ReadState::kMore;
}

ReadState JsonCallReader::end_object() {
  if (!begun_) return ReadState::kWrong;
  if (!has_arguments_) sink_->add_arguments("{}");
  sink_->end_call();
  at_ = At::kEnd;
  return ReadState::kDone;
}

void JsonCallReader::add_arguments(std::string_view json) {
  if (begun_)
    sink_->add_arguments(json);
  else
    early_arguments_ += json;
}

ReadState JsonCallListReader::push(char c) {
  switch (at_) {
    case At::kStart:
      if (is_json_space(c)) return ReadState::kMore;
      list_ = c == '[';
      at_ = list_ ? At::kItem : At::kInCall;
      return list_ ? ReadState::kMore : call_.push(c);
    case At::kItem:
      if (is_json_space(c)) return ReadState::kMore;
      at_ = At::kInCall;
      return call_.push(c);
    case At::kInCall: {
      const ReadState state = call_.push(c);
      if (state != ReadState::kDone) return state;
      at_ = list_ ? At::kNext : At::kEnd;
      return list_ ? ReadState::kMore : ReadState::kDone;
    }
    case At::kNext:
      if (is_json_space(c)) return ReadState::kMore;
      if (c == ',') {
        call_ = JsonCallReader(sink_);
        at_ = At::kItem;
        return ReadState::kMore;
      }
      if (c != ']') return ReadState::kWrong;
      at_ = At::kEnd;
      return ReadState::kDone;
    case At::kEnd:
      break;
  }
  return ReadState::kWrong;
}

}  // namespace thaw::coalescer
