#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

namespace thaw::coalescer {

/// Appends `text` as a JSON string with its quotes. Invalid UTF-8 comes out as U+FFFD, so the
/// result is always valid JSON.
void append_json_string(std::string& out, std::string_view text);

/// The same, or `null` where `text` is empty.
void append_json_string_or_null(std::string& out, std::string_view text);

void append_json_integer(std::string& out, std::int64_t value);

/// The shortest text that reads back as `value`; `null` for what JSON cannot write.
void append_json_float(std::string& out, float value);

/// On one line. Strings may hold what is no UTF-8, such as a character that was cut: U+FFFD stands
/// for it.
std::string dump_json(const nlohmann::ordered_json& value);

/// Characters (code points) of valid UTF-8.
std::size_t count_characters(std::string_view text);

/// Length of the valid UTF-8 character at the start of `text`; 0 where there is none.
std::size_t utf8_character_length(std::string_view text);

}  // namespace thaw::coalescer
