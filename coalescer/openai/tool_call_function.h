#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "coalescer/openai/tool_call_json.h"
#include "coalescer/openai/tool_call_reader.h"
#include "coalescer/openai/tools.h"

namespace thaw::coalescer {

/// What follows `<function=`: `f>`, then `<parameter=a>\n1\n</parameter>` for each argument or one
/// JSON object, then `</function>`. A value is text where the tool's schema says string, else JSON
/// where it is some.
class FunctionTagReader final : public CallReader {
 public:
  FunctionTagReader(const std::vector<ToolSpec>* tools, CallSink* sink)
      : tools_(tools), sink_(sink) {}
  ReadState push(char c) override;
  bool may_end() const override { return at_ == At::kEnd; }

 private:
  enum class At : std::uint8_t { kName, kBody, kTag, kKey, kValue, kObject, kBehind, kEnd };

  ReadState in_tag(char c);
  ReadState in_value(char c);
  void end_parameter();
  ReadState end_function();

  const std::vector<ToolSpec>* tools_;
  CallSink* sink_;
  At at_ = At::kName;
  std::string name_;
  std::string tag_;  // as far as it came
  std::string key_;
  std::string value_;
  JsonValueEnd object_;
  bool has_arguments_ = false;
  bool whole_object_ = false;  // the arguments came as one
};

}  // namespace thaw::coalescer
