#include "coalescer/openai/tool_call_reader.h"

#include <string>

#include "coalescer/openai/tool_call_function.h"
#include "coalescer/openai/tool_call_json.h"
#include "coalescer/openai/tool_call_python.h"

namespace thaw::coalescer {
namespace {

constexpr std::string_view kFunction = "<function=";
constexpr std::string_view kEndTag = "</tool_call>";

/// What follows `<tool_call>`: an object, a list of them, or a function tag; and the end tag.
class TaggedReader final : public CallReader {
 public:
  TaggedReader(const std::vector<ToolSpec>* tools, CallSink* sink) : tools_(tools), sink_(sink) {}

  ReadState push(char c) override {
    if (inner_ == nullptr) return begin(c);
    if (!inner_done_) {
      const ReadState state = inner_->push(c);
      inner_done_ = state == ReadState::kDone;
      return inner_done_ ? ReadState::kMore : state;
    }
    if (end_length_ == 0 && is_json_space(c)) return ReadState::kMore;
    if (kEndTag[end_length_] != c) return ReadState::kWrong;
    return ++end_length_ == kEndTag.size() ? ReadState::kDone : ReadState::kMore;
  }

  bool may_end() const override { return inner_done_; }

 private:
  ReadState begin(char c) {
    if (begin_.empty() && is_json_space(c)) return ReadState::kMore;
    if (begin_.empty() && (c == '{' || c == '[')) {
      inner_ = std::make_unique<JsonCallListReader>(sink_);
      return inner_->push(c);
    }
    begin_ += c;
    if (!kFunction.starts_with(begin_)) return ReadState::kWrong;
    if (begin_ == kFunction) inner_ = std::make_unique<FunctionTagReader>(tools_, sink_);
    return ReadState::kMore;
  }

  const std::vector<ToolSpec>* tools_;
  CallSink* sink_;
  std::string begin_;
  std::unique_ptr<CallReader> inner_;
  bool inner_done_ = false;
  std::size_t end_length_ = 0;
};

/// What follows `[TOOL_CALLS]`: a list of objects, or a name and the arguments: `f[ARGS]{...}`.
class MistralReader final : public CallReader {
 public:
  explicit MistralReader(CallSink* sink) : sink_(sink) {}

  ReadState push(char c) override {
    if (list_ != nullptr) return finish(list_->push(c));
    if (in_arguments_) {
      const JsonValueEnd::Result result = object_.push(c);
      if (result == JsonValueEnd::Result::kWrong) return ReadState::kWrong;
      sink_->add_arguments({&c, 1});
      if (result != JsonValueEnd::Result::kLast) return ReadState::kMore;
      sink_->end_call();
      return finish(ReadState::kDone);
    }
    if (name_.empty() && is_json_space(c)) return ReadState::kMore;
    if (name_.empty() && c == '[') {
      list_ = std::make_unique<JsonCallListReader>(sink_);
      return list_->push(c);
    }
    if (c == '{') return begin_arguments(c);
    if (name_.size() > kMaxToolNameBytes + kArgs.size()) return ReadState::kWrong;
    name_ += c;
    return ReadState::kMore;
  }

  bool may_end() const override { return done_; }

 private:
  static constexpr std::string_view kArgs = "[ARGS]";

  ReadState begin_arguments(char c) {
    if (name_.ends_with(kArgs)) name_.resize(name_.size() - kArgs.size());
    while (!name_.empty() && is_json_space(name_.back()))
      name_.pop_back();
    if (name_.empty() || !sink_->begin_call(name_)) return ReadState::kWrong;
    in_arguments_ = true;
    return push(c);
  }

  ReadState finish(ReadState state) {
    done_ = state == ReadState::kDone;
    return state;
  }

  CallSink* sink_;
  std::unique_ptr<CallReader> list_;
  std::string name_;
  bool in_arguments_ = false;
  bool done_ = false;
  JsonValueEnd object_;
};

}  // namespace

std::unique_ptr<CallReader> make_call_reader(ToolForm form, std::string_view trigger,
                                             const std::vector<ToolSpec>* tools, CallSink* sink) {
  if (trigger == kFunction) return std::make_unique<FunctionTagReader>(tools, sink);
  switch (form) {
    case ToolForm::kPythonic:
      return make_pythonic_reader(/*tagged=*/!trigger.empty(), sink);
    case ToolForm::kLlama3Json:
      return std::make_unique<JsonCallReader>(sink);
    case ToolForm::kMistral:
      return std::make_unique<MistralReader>(sink);
    case ToolForm::kHermes:
    case ToolForm::kHermesList:
    case ToolForm::kFunctionTag:
      break;
  }
  return std::make_unique<TaggedReader>(tools, sink);
}

char bare_call_begin(ToolForm form) {
  if (form == ToolForm::kLlama3Json) return '{';
  return form == ToolForm::kPythonic ? '[' : '\0';
}

}  // namespace thaw::coalescer
