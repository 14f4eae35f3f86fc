#include "coalescer/openai/tool_call_function.h"

#include <algorithm>
#include <string_view>

#include <nlohmann/json.hpp>

#include "coalescer/openai/json_text.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

constexpr std::string_view kParameter = "<parameter=";
constexpr std::string_view kEndParameter = "</parameter>";
constexpr std::string_view kEndFunction = "</function>";

/// Whether the schema of argument `key` takes strings; and other things.
struct Taken {
  bool strings = false;
  bool others = true;
};

Taken taken_by(const ToolSpec* tool, const std::string& key) {
  if (tool == nullptr || !tool->parameters.is_object()) return {};
  const auto properties = tool->parameters.find("properties");
  if (properties == tool->parameters.end() || !properties->is_object()) return {};
  const auto property = properties->find(key);
  if (property == properties->end() || !property->is_object()) return {};
  const auto type = property->find("type");
  if (type == property->end()) return {};
  if (type->is_string()) return {*type == "string", *type != "string"};
  Taken taken{false, false};
  if (!type->is_array()) return {};
  for (const ordered_json& one : *type)
    (one == "string" ? taken.strings : taken.others) = true;
  return taken;
}

/// One line feed at each end belongs to the form.
std::string_view without_frame(std::string_view value) {
  if (value.starts_with('\n')) value.remove_prefix(1);
  if (value.ends_with('\n')) value.remove_suffix(1);
  return value;
}

}  // namespace

ReadState FunctionTagReader::push(char c) {
  switch (at_) {
    case At::kName:
      if (c == '>') {
        at_ = At::kBody;
        return !name_.empty() && sink_->begin_call(name_) ? ReadState::kMore : ReadState::kWrong;
      }
      if (is_json_space(c) || c == '<' || name_.size() >= kMaxToolNameBytes)
        return ReadState::kWrong;
      name_ += c;
      return ReadState::kMore;
    case At::kBody:
      if (is_json_space(c)) return ReadState::kMore;
      if (c == '{' && !has_arguments_) {
        at_ = At::kObject;
        whole_object_ = has_arguments_ = true;
        return push(c);
      }
      at_ = At::kTag;
      tag_.clear();
      return in_tag(c);
    case At::kTag:
      return in_tag(c);
    case At::kKey:
      if (c == '>') {
        at_ = At::kValue;
        value_.clear();
        return key_.empty() ? ReadState::kWrong : ReadState::kMore;
      }
      if (c == '<' || key_.size() >= kMaxToolNameBytes) return ReadState::kWrong;
      key_ += c;
      return ReadState::kMore;
    case At::kValue:
      return in_value(c);
    case At::kObject: {
      const JsonValueEnd::Result result = object_.push(c);
      if (result == JsonValueEnd::Result::kWrong) return ReadState::kWrong;
      sink_->add_arguments({&c, 1});
      if (result == JsonValueEnd::Result::kLast) at_ = At::kBehind;
      return ReadState::kMore;
    }
    case At::kBehind:
      if (is_json_space(c)) return ReadState::kMore;
      at_ = At::kTag;
      tag_.clear();
      return in_tag(c);
    case At::kEnd:
      break;
  }
  return ReadState::kWrong;
}

ReadState FunctionTagReader::in_tag(char c) {
  tag_ += c;
  if (tag_ == kEndFunction) return end_function();
  if (tag_ == kParameter && !whole_object_) {
    at_ = At::kKey;
    key_.clear();
    return ReadState::kMore;
  }
  const bool may_be =
      kEndFunction.starts_with(tag_) || (!whole_object_ && kParameter.starts_with(tag_));
  return may_be ? ReadState::kMore : ReadState::kWrong;
}

ReadState FunctionTagReader::in_value(char c) {
  value_ += c;
  if (!value_.ends_with(kEndParameter)) return ReadState::kMore;
  value_.resize(value_.size() - kEndParameter.size());
  end_parameter();
  at_ = At::kBody;
  return ReadState::kMore;
}

void FunctionTagReader::end_parameter() {
  const Taken taken = taken_by(find_tool(*tools_, name_), key_);
  const std::string value(without_frame(value_));
  std::string json = has_arguments_ ? ", " : "{";
  append_json_string(json, key_);
  json += ": ";
  // Where both are taken, only null is told from a text.
  const bool is_json =
      taken.others && (!taken.strings || value == "null") && ordered_json::accept(value);
  if (is_json)
    json += value;
  else
    append_json_string(json, value);
  has_arguments_ = true;
  sink_->add_arguments(json);
}

ReadState FunctionTagReader::end_function() {
  if (!has_arguments_)
    sink_->add_arguments("{}");
  else if (!whole_object_)
    sink_->add_arguments("}");
  sink_->end_call();
  at_ = At::kEnd;
  return ReadState::kDone;
}

}  // namespace thaw::coalescer
