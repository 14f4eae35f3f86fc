#include "coalescer/openai/query.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include "coalescer/openai/field_words.h"

namespace thaw::coalescer {
namespace {

std::optional<ApiError> wrong_parameter(const Field& field, const std::string& text,
                                        const std::string& right) {
  const std::string name(field.name);
  return invalid_field(name, "`" + name + "` is `" + text.substr(0, 40) + "`; it must be " + right);
}

std::optional<ApiError> check_parameter(const Field& field, const std::string& text) {
  const auto is_word = [](const Field& of, std::string_view one) {
    return of.words.empty() || std::ranges::find(of.words, one) != of.words.end();
  };
  if (field.kind == ValueKind::kBoolean && text != "true" && text != "false")
    return wrong_parameter(field, text, "true or false");
  if (field.kind == ValueKind::kWhole) {
    std::int64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || end != text.data() + text.size() || number < field.least ||
        number > field.most)
      return wrong_parameter(field, text, whole_text(field.least, field.most));
  }
  if (field.kind == ValueKind::kString && !is_word(field, text))
    return wrong_parameter(field, text, list_of(field.words, "`", " or "));
  if (field.kind != ValueKind::kList) return std::nullopt;
  // Nothing is one entry, which is empty.
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view one = std::string_view(text).substr(begin, end - begin);
    begin = end + 1;
    if (!is_word(*field.item, one)) {
      return wrong_parameter(
          field, std::string(one),
          list_of(field.item->words, "`", " or ") + ", or several with commas between them");
    }
  }
  return std::nullopt;
}

}  // namespace

std::string percent_decode(std::string_view text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned byte = 0;
    if (text[i] == '%' && i + 2 < text.size() &&
        std::from_chars(&text[i + 1], &text[i + 1] + 2, byte, 16).ptr == &text[i + 1] + 2) {
      out += static_cast<char>(byte);
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::optional<ApiError> read_query(std::span<const Field> fields, OtherParameters others,
                                   std::string_view query,
                                   std::span<std::optional<std::string>> values) {
  while (!query.empty()) {
    const std::string_view pair = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), pair.size() + 1));
    if (pair.empty()) continue;
    const std::string name = percent_decode(pair.substr(0, pair.find('=')));
    const auto field = std::ranges::find(fields, name, &Field::name);
    if (field == fields.end() && others == OtherParameters::kIgnored) continue;
    if (field == fields.end()) {
      std::string known;
      for (const Field& one : fields) {
        known.append(known.empty() ? "`" : " or `");
        known.append(one.name).append("`");
      }
      const std::string shown = name.substr(0, 40);
      std::string message = "the query has a parameter `";
      message.append(shown).append("`; known is ").append(known);
      return invalid_field(shown, std::move(message));
    }
    const std::size_t equals = pair.find('=');
    std::string value;
    if (equals != std::string_view::npos) value = percent_decode(pair.substr(equals + 1));
    if (auto error = check_parameter(*field, value)) return error;
    values[static_cast<std::size_t>(field - fields.begin())] = std::move(value);
  }
  return std::nullopt;
}

std::int64_t whole_or(const std::optional<std::string>& value, std::int64_t standard) {
  if (value) std::from_chars(value->data(), value->data() + value->size(), standard);
  return standard;
}

}  // namespace thaw::coalescer
