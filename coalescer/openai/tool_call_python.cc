#include "coalescer/openai/tool_call_python.h"

#include <cctype>
#include <charconv>
#include <utility>

#include <nlohmann/json.hpp>

#include "coalescer/openai/json_text.h"
#include "coalescer/openai/tool_call_json.h"

namespace thaw::coalescer {
namespace {

using nlohmann::ordered_json;

constexpr int kMaxValueDepth = 64;
constexpr std::string_view kPythonEndTag = "<|tool_call_end|>";

bool is_name(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 ||
         std::string_view("_-.:/").find(c) != std::string_view::npos;
}

void append_utf8(std::string& out, std::uint32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xc0 | (code >> 6));
    out += static_cast<char>(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xe0 | (code >> 12));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
    out += static_cast<char>(0x80 | (code & 0x3f));
  } else {
    out += static_cast<char>(0xf0 | (code >> 18));
    out += static_cast<char>(0x80 | ((code >> 12) & 0x3f));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
    out += static_cast<char>(0x80 | (code & 0x3f));
  }
}

/// A parser of Python literals; every method is false where the text is none.
class Literals {
 public:
  explicit Literals(std::string_view text) : text_(text) {}

  bool keywords(ordered_json& out) {
    out = ordered_json::object();
    skip();
    while (!at_end()) {
      std::string name;
      while (!at_end() && is_name(text_[at_]))
        name += text_[at_++];
      skip();
      if (name.empty() || !take('=')) return false;
      ordered_json parsed;
      if (!value(parsed, 0)) return false;
      out[name] = std::move(parsed);
      skip();
      if (at_end()) return true;
      if (!take(',')) return false;
      skip();
    }
    return true;
  }

 private:
  bool at_end() const { return at_ >= text_.size(); }
  void skip() {
    while (!at_end() && is_json_space(text_[at_]))
      ++at_;
  }
  bool take(char c) {
    if (at_end() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  bool value(ordered_json& out, int depth) {
    skip();
    if (at_end() || depth > kMaxValueDepth) return false;
    const char c = text_[at_];
    if (c == '"' || c == '\'') return string(out);
    if (c == '[' || c == '(') return list(out, c == '[' ? ']' : ')', depth);
    if (c == '{') return dict(out, depth);
    return word(out);
  }

  bool list(ordered_json& out, char end, int depth) {
    out = ordered_json::array();
    ++at_;
    for (skip(); !take(end); skip()) {
      ordered_json item;
      if (!value(item, depth + 1)) return false;
      out.push_back(std::move(item));
      skip();
      if (!take(',') && (at_end() || text_[at_] != end)) return false;
    }
    return true;
  }

  bool dict(ordered_json& out, int depth) {
    out = ordered_json::object();
    ++at_;
    for (skip(); !take('}'); skip()) {
      ordered_json key;
      if (!value(key, depth + 1) || !key.is_string()) return false;
      skip();
      ordered_json item;
      if (!take(':') || !value(item, depth + 1)) return false;
      out[key.get<std::string>()] = std::move(item);
      skip();
      if (!take(',') && (at_end() || text_[at_] != '}')) return false;
    }
    return true;
  }

  bool word(ordered_json& out) {
    const std::size_t begin = at_;
    while (!at_end() && (is_name(text_[at_]) || text_[at_] == '+'))
      ++at_;
    const std::string_view found = text_.substr(begin, at_ - begin);
    if (found == "True" || found == "true")
      out = true;
    else if (found == "False" || found == "false")
      out = false;
    else if (found == "None" || found == "null")
      out = nullptr;
    else
      out = ordered_json::parse(found, nullptr, /*allow_exceptions=*/false);
    return !out.is_discarded() && !found.empty();
  }

  bool hex(int digits, std::uint32_t& code) {
    const std::string_view found = text_.substr(at_, static_cast<std::size_t>(digits));
    const auto [end, error] = std::from_chars(found.data(), found.data() + found.size(), code, 16);
    if (error != std::errc() || end != found.data() + digits) return false;
    at_ += static_cast<std::size_t>(digits);
    return true;
  }

  bool escape(std::string& text) {
    if (at_end()) return false;
    const char c = text_[at_++];
    std::uint32_t code = 0;
    switch (c) {
      case 'n':
        text += '\n';
        return true;
      case 't':
        text += '\t';
        return true;
      case 'r':
        text += '\r';
        return true;
      case 'b':
        text += '\b';
        return true;
      case 'f':
        text += '\f';
        return true;
      case '\n':
        return true;  // a line that goes on
      case 'x':
      case 'u':
        if (!hex(c == 'x' ? 2 : 4, code)) return false;
        if (code >= 0xd800 && code < 0xdc00) {  // the first half of a pair, as JSON writes it
          std::uint32_t low = 0;
          if (!take('\\') || !take('u') || !hex(4, low) || low < 0xdc00 || low > 0xdfff)
            return false;
          code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
        }
        if (code >= 0xdc00 && code <= 0xdfff) return false;
        append_utf8(text, code);
        return true;
      case '\\':
      case '\'':
      case '"':
      case '/':
        text += c;
        return true;
      default:
        text += '\\';
        text += c;
        return true;
    }
  }

  bool string(ordered_json& out) {
    const char quote = text_[at_++];
    std::string text;
    while (!at_end()) {
      const char c = text_[at_++];
      if (c == quote) {
        out = std::move(text);
        return true;
      }
      if (c != '\\')
        text += c;
      else if (!escape(text))
        return false;
    }
    return false;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

class PythonicReader final : public CallReader {
 public:
  PythonicReader(bool tagged, CallSink* sink) : tagged_(tagged), sink_(sink) {}

  ReadState push(char c) override {
    switch (at_) {
      case At::kStart:
        if (is_json_space(c)) return ReadState::kMore;
        if (c != '[') return ReadState::kWrong;
        at_ = At::kName;
        return ReadState::kMore;
      case At::kName:
        if (name_.empty() && is_json_space(c)) return ReadState::kMore;
        if (c == '(' && !name_.empty()) {
          at_ = At::kArguments;
          return ReadState::kMore;
        }
        if (!is_name(c) || name_.size() >= kMaxToolNameBytes) return ReadState::kWrong;
        if (name_.empty() && !std::isalpha(static_cast<unsigned char>(c)) && c != '_')
          return ReadState::kWrong;
        name_ += c;
        return ReadState::kMore;
      case At::kArguments:
        return in_arguments(c);
      case At::kNext:
        if (is_json_space(c)) return ReadState::kMore;
        if (c == ',') {
          at_ = At::kName;
          return ReadState::kMore;
        }
        if (c != ']') return ReadState::kWrong;
        at_ = At::kEnd;
        return tagged_ ? ReadState::kMore : ReadState::kDone;
      case At::kEnd:
        if (end_length_ == 0 && is_json_space(c)) return ReadState::kMore;
        if (kPythonEndTag[end_length_] != c) return ReadState::kWrong;
        return ++end_length_ == kPythonEndTag.size() ? ReadState::kDone : ReadState::kMore;
    }
    return ReadState::kWrong;
  }

  bool may_end() const override { return at_ == At::kEnd; }

 private:
  enum class At : std::uint8_t { kStart, kName, kArguments, kNext, kEnd };

  ReadState in_arguments(char c) {
    if (quote_ != 0) {
      if (escaped_)
        escaped_ = false;
      else if (c == '\\')
        escaped_ = true;
      else if (c == quote_)
        quote_ = 0;
    } else if (c == '"' || c == '\'') {
      quote_ = c;
    } else if (c == '(' || c == '[' || c == '{') {
      ++depth_;
    } else if (c == ')' && depth_ == 0) {
      return end_arguments();
    } else if (c == ')' || c == ']' || c == '}') {
      if (--depth_ < 0) return ReadState::kWrong;
    }
    arguments_ += c;
    return ReadState::kMore;
  }

  ReadState end_arguments() {
    const auto json = keywords_to_json(arguments_);
    if (!json || !sink_->begin_call(name_)) return ReadState::kWrong;
    sink_->add_arguments(*json);
    sink_->end_call();
    name_.clear();
    arguments_.clear();
    at_ = At::kNext;
    return ReadState::kMore;
  }

  bool tagged_;
  CallSink* sink_;
  At at_ = At::kStart;
  std::string name_;
  std::string arguments_;
  char quote_ = 0;
  bool escaped_ = false;
  int depth_ = 0;
  std::size_t end_length_ = 0;  // of the end tag, as far as it came
};

}  // namespace

std::optional<std::string> keywords_to_json(std::string_view keywords) {
  ordered_json arguments;
  if (!Literals(keywords).keywords(arguments)) return std::nullopt;
  return dump_json(arguments);
}

std::unique_ptr<CallReader> make_pythonic_reader(bool tagged, CallSink* sink) {
  return std::make_unique<PythonicReader>(tagged, sink);
}

}  // namespace thaw::coalescer
