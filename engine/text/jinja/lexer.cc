#include "engine/text/jinja/lexer.h"

#include <algorithm>
#include <cctype>
#include <charconv>
#include <cstdlib>
#include <utility>

#include "engine/text/jinja/error.h"
#include "engine/text/jinja/text_ops.h"
#include "engine/text/jinja/unicode.h"

namespace thaw::text::jinja {
namespace {

/// "\r\n" and "\r" become "\n"; one newline at the very end goes.
std::string normalize_newlines(std::string_view source) {
  std::string result;
  result.reserve(source.size());
  for (std::size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      if (i + 1 < source.size() && source[i + 1] == '\n') ++i;
      result += '\n';
    } else {
      result += source[i];
    }
  }
  if (!result.empty() && result.back() == '\n') result.pop_back();
  return result;
}

bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_' ||
         static_cast<unsigned char>(c) >= 0x80;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size())
      lex_data();
    add(TokenType::kEnd);
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& message) const { throw TemplateError(message, line_); }

  bool starts(std::string_view what, std::size_t at) const {
    return std::string_view(source_).substr(at, what.size()) == what;
  }
  char peek(std::size_t at) const { return at < source_.size() ? source_[at] : '\0'; }

  Token& add(TokenType type, std::string text = {}) {
    Token token;
    token.type = type;
    token.text = std::move(text);
    token.line = line_;
    tokens_.push_back(std::move(token));
    return tokens_.back();
  }

  /// Moves on to `end`, counting lines.
  void advance(std::size_t end) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(end), '\n'));
    at_ = end;
  }

  std::size_t skip_spaces(std::size_t at) const {
    while (at < source_.size()) {
      const CodePoint c = decode_at(source_, at);
      if (!is_space(c.value)) break;
      at += c.size;
    }
    return at;
  }

  /// `text` before a tag with `sign` ('-', '+' or none), shortened as the tag asks.
  std::string_view strip_before(std::string_view text, char sign, bool is_variable) const {
    if (sign == '-') {
      while (!text.empty()) {
        const CodePoint c = decode_before(text, text.size());
        if (!is_space(c.value)) break;
        text.remove_suffix(c.size);
      }
      return text;
    }
    if (sign == '+' || is_variable) return text;
    const std::size_t newline = text.rfind('\n');
    const std::size_t line_start = newline == std::string_view::npos ? 0 : newline + 1;
    if (line_start == 0 && !line_starting_) return text;
    std::size_t at = line_start;
    while (at < text.size()) {
      const CodePoint c = decode_at(text, at);
      if (!is_space(c.value)) return text;
      at += c.size;
    }
    return text.substr(0, line_start);
  }

  /// Past the end of a tag whose closing `mark` ("%}" and so on) starts at `at` or, with a sign,
  /// one later; npos when there is none at `at`.
  std::size_t past_end_mark(std::size_t at, std::string_view mark, bool trims_newline) const {
    if (peek(at) == '-' && starts(mark, at + 1)) return skip_spaces(at + 1 + mark.size());
    if (trims_newline && peek(at) == '+' && starts(mark, at + 1)) return at + 1 + mark.size();
    if (!starts(mark, at)) return std::string::npos;
    at += mark.size();
    return trims_newline && peek(at) == '\n' ? at + 1 : at;
  }

  /// Ends a tag at `end`: the next tag may stand at the start of a line.
  void finish_tag(std::size_t end) {
    advance(end);
    line_starting_ = source_[end - 1] == '\n';
  }

  /// Text up to the next tag, and that tag.
  void lex_data() {
    std::size_t tag = at_;
    while (true) {
      tag = source_.find('{', tag);
      if (tag == std::string::npos) {
        add(TokenType::kData, source_.substr(at_));
        return advance(source_.size());
      }
      const char kind = peek(tag + 1);
      if (kind == '{' || kind == '%' || kind == '#') break;
      ++tag;
    }
    const char kind = source_[tag + 1];
    const char sign = peek(tag + 2) == '-' || peek(tag + 2) == '+' ? source_[tag + 2] : '\0';
    const std::size_t inside = tag + 2 + (sign != '\0' ? 1 : 0);
    const std::string_view before(source_.data() + at_, tag - at_);
    const std::string_view text = strip_before(before, sign, kind == '{');
    if (!text.empty()) add(TokenType::kData, std::string(text));
    advance(inside);
    line_starting_ = false;
    if (kind == '#') return lex_comment();
    if (kind == '%' && lex_raw()) return;
    add(kind == '{' ? TokenType::kVariableBegin : TokenType::kBlockBegin);
    lex_tag(kind == '{');
  }

  void lex_comment() {
    for (std::size_t at = at_; at < source_.size(); ++at) {
      const std::size_t end = past_end_mark(at, "#}", true);
      if (end != std::string::npos) return finish_tag(end);
    }
    fail("missing end of comment tag");
  }

  /// After "{%": a raw block up to its end, if it is one.
  bool lex_raw() {
    std::size_t at = skip_spaces(at_);
    if (!starts("raw", at)) return false;
    at = skip_spaces(at + 3);
    const std::size_t body = past_end_mark(at, "%}", false);
    if (body == std::string::npos) return false;
    finish_tag(body);
    for (std::size_t tag = source_.find("{%", at_); tag != std::string::npos;
         tag = source_.find("{%", tag + 1)) {
      const char sign = peek(tag + 2) == '-' || peek(tag + 2) == '+' ? source_[tag + 2] : '\0';
      std::size_t name = skip_spaces(tag + 2 + (sign != '\0' ? 1 : 0));
      if (!starts("endraw", name)) continue;
      const std::size_t end = past_end_mark(skip_spaces(name + 6), "%}", true);
      if (end == std::string::npos) continue;
      const std::string_view text =
          strip_before(std::string_view(source_.data() + at_, tag - at_), sign, false);
      if (!text.empty()) add(TokenType::kData, std::string(text));
      finish_tag(end);
      return true;
    }
    fail("missing end of raw directive");
  }

  void lex_tag(bool is_variable) {
    const std::string_view mark = is_variable ? "}}" : "%}";
    std::vector<char> open;
    while (true) {
      advance(skip_spaces(at_));
      if (at_ >= source_.size()) {
        fail(is_variable ? "unexpected end of template, expected '}}'"
                         : "unexpected end of template, expected '%}'");
      }
      if (open.empty()) {
        const std::size_t end = past_end_mark(at_, mark, !is_variable);
        if (end != std::string::npos) {
          add(is_variable ? TokenType::kVariableEnd : TokenType::kBlockEnd);
          return finish_tag(end);
        }
      }
      lex_token(open);
    }
  }

  void lex_token(std::vector<char>& open) {
    const char c = source_[at_];
    if (is_digit(c) && lex_number()) return;
    if (is_name_start(c)) {
      std::size_t end = at_ + 1;
      while (end < source_.size() && (is_name_start(source_[end]) || is_digit(source_[end])))
        ++end;
      add(TokenType::kName, source_.substr(at_, end - at_));
      return advance(end);
    }
    if (c == '\'' || c == '"') return lex_string();
    lex_operator(open);
  }

  /// End of digits with single underscores between them, from `at`.
  std::size_t digits_end(std::size_t at, bool (*accepts)(char)) const {
    while (accepts(peek(at)) ||
           (peek(at) == '_' && at > 0 && accepts(source_[at - 1]) && accepts(peek(at + 1)))) {
      ++at;
    }
    return at;
  }

  bool lex_number() {
    const std::size_t start = at_;
    const auto text_to = [&](std::size_t end) {
      std::string digits = source_.substr(start, end - start);
      digits.erase(std::remove(digits.begin(), digits.end(), '_'), digits.end());
      return digits;
    };
    const std::size_t whole_end = digits_end(start, is_digit);
    std::size_t end = whole_end;
    if (peek(end) == '.' && is_digit(peek(end + 1))) end = digits_end(end + 1, is_digit);
    if (peek(end) == 'e' || peek(end) == 'E') {
      std::size_t exponent = end + 1;
      if (peek(exponent) == '+' || peek(exponent) == '-') ++exponent;
      if (is_digit(peek(exponent))) end = digits_end(exponent, is_digit);
    }
    const bool after_dot = start > 0 && source_[start - 1] == '.';
    if (end > whole_end && !after_dot) {
      add(TokenType::kFloat).number = std::strtod(text_to(end).c_str(), nullptr);
      advance(end);
      return true;
    }
    int base = 10;
    std::size_t first = start;
    end = whole_end;
    const char letter = static_cast<char>(peek(start + 1) | 0x20);
    if (source_[start] == '0' && (letter == 'x' || letter == 'o' || letter == 'b')) {
      base = letter == 'x' ? 16 : letter == 'o' ? 8 : 2;
      const auto accepts =
          base == 16  ? +[](char c) { return std::isxdigit(static_cast<unsigned char>(c)) != 0; }
          : base == 8 ? +[](char c) { return c >= '0' && c <= '7'; }
                      : +[](char c) { return c == '0' || c == '1'; };
      first = start + 2;
      end = digits_end(first, accepts);
      if (end == first) fail("invalid number");
    }
    std::int64_t value = 0;
    const std::string digits = text_to(end).substr(first - start);
    const auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    if (parsed.ec != std::errc()) fail("the number " + digits + " is too large");
    add(TokenType::kInteger, digits).integer = value;
    advance(end);
    return true;
  }

  void lex_string() {
    const char quote = source_[at_];
    std::size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote)
      end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) fail("a string is not closed");
    std::string text = unescape(std::string_view(source_).substr(at_ + 1, end - at_ - 1));
    add(TokenType::kString, std::move(text));
    advance(end + 1);
  }

  std::string unescape(std::string_view text) const {
    std::string result;
    result.reserve(text.size());
    for (std::size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\' || i + 1 >= text.size()) {
        result += text[i];
        continue;
      }
      static constexpr std::string_view kLetters = "nrtabfv\\'\"";
      static constexpr std::string_view kMeanings = "\n\r\t\a\b\f\v\\'\"";
      const char letter = text[++i];
      const std::size_t known = kLetters.find(letter);
      if (known != std::string_view::npos) {
        result += kMeanings[known];
      } else if (letter >= '0' && letter <= '7') {
        char32_t value = 0;
        std::size_t count = 0;
        while (count < 3 && i + count < text.size() && text[i + count] >= '0' &&
               text[i + count] <= '7') {
          value = value * 8 + static_cast<char32_t>(text[i + count++] - '0');
        }
        append_utf8(result, value);
        i += count - 1;
      } else if (letter == 'x' || letter == 'u' || letter == 'U') {
        const std::size_t count = letter == 'x' ? 2 : letter == 'u' ? 4 : 8;
        const std::string_view digits = text.substr(i + 1, count);
        std::uint32_t value = 0;
        const auto parsed =
            std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
        if (digits.size() != count || parsed.ptr != digits.data() + count || value > 0x10FFFF) {
          fail("a string holds a broken \\" + std::string(1, letter) + " escape");
        }
        append_utf8(result, value);
        i += count;
      } else if (letter != '\n') {
        result += '\\';
        result += letter;
      }
    }
    return result;
  }

  void lex_operator(std::vector<char>& open) {
    static constexpr std::string_view kOperators[] = {
        "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[",
        "]",  "(",  ")",  "{",  "}",  ">",  "<", "=", ".", ":", "|", ",", ";"};
    for (const std::string_view op : kOperators) {
      if (!starts(op, at_)) continue;
      const char c = op[0];
      if (c == '(' || c == '[' || c == '{') {
        open.push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
      } else if (c == ')' || c == ']' || c == '}') {
        if (open.empty()) fail("unexpected '" + std::string(op) + "'");
        if (open.back() != c) {
          fail("unexpected '" + std::string(op) + "', expected '" + std::string(1, open.back()) +
               "'");
        }
        open.pop_back();
      }
      add(TokenType::kOperator, std::string(op));
      return advance(at_ + op.size());
    }
    fail("unexpected character '" + source_.substr(at_, decode_at(source_, at_).size) + "'");
  }

  std::string source_;
  std::size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;  ///< the position after the last tag is the start of a line
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  return Lexer(source).run();
}

}  // namespace thaw::text::jinja
