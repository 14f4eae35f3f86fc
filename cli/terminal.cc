#include "cli/terminal.h"

#include <sys/ioctl.h>
#include <unistd.h>
#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <utility>

namespace thaw::cli {
namespace {

constexpr std::size_t kNarrowest = 40;
constexpr std::size_t kWidest = 160;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

std::string_view variable(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view() : std::string_view(value);
}

bool locale_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) {
    std::string value(variable(name));
    if (value.empty()) continue;
    std::ranges::transform(value, value.begin(), [](unsigned char c) { return std::tolower(c); });
    return value.find("utf-8") != std::string::npos || value.find("utf8") != std::string::npos;
  }
  return false;
}

/// The code point at the start of `text` and the bytes it takes; -1 and one byte where it is none.
std::pair<utf8proc_int32_t, std::size_t> first_code_point(std::string_view text) {
  utf8proc_int32_t point = -1;
  const utf8proc_ssize_t size =
      utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                       static_cast<utf8proc_ssize_t>(text.size()), &point);
  if (size <= 0) return {-1, 1};
  return {point, static_cast<std::size_t>(size)};
}

std::string escape(utf8proc_int32_t point) {
  switch (point) {
    case '\n':
      return "\\n";
    case '\t':
      return "\\t";
    case '\r':
      return "\\r";
    default:
      break;
  }
  char text[16];
  std::snprintf(text, sizeof text, point > 0xFFFF ? "\\U%08x" : "\\u%04x",
                static_cast<unsigned>(point));
  return text;
}

/// Characters that move the cursor, change the direction of writing or show nothing.
bool is_unprintable(utf8proc_int32_t point) {
  switch (utf8proc_category(point)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
      return true;
    default:
      return false;
  }
}

/// Calls `take(piece, columns)` with every character, escapes as one, until it says no.
template <typename Take>
void for_each_character(std::string_view text, const Take& take) {
  while (!text.empty()) {
    if (text.starts_with("\x1b[")) {  // a colour of styled()
      const std::size_t end = std::min(text.find('m'), text.size() - 1) + 1;
      if (!take(text.substr(0, end), std::size_t{0})) return;
      text.remove_prefix(end);
      continue;
    }
    const auto [point, size] = first_code_point(text);
    const int width = point < 0 ? 1 : std::max(0, utf8proc_charwidth(point));
    if (!take(text.substr(0, size), static_cast<std::size_t>(width))) return;
    text.remove_prefix(size);
  }
}

std::vector<std::string> wrapped(std::string_view text, std::size_t columns) {
  std::vector<std::string> lines(1);
  std::size_t used = 0;
  for_each_character(text, [&](std::string_view piece, std::size_t width) {
    if (used + width > columns) {
      lines.emplace_back();
      used = 0;
    }
    lines.back() += piece;
    used += width;
    return true;
  });
  return lines;
}

}  // namespace

Look look_of_stdout() {
  Look look;
  if (::isatty(STDOUT_FILENO) == 0 || variable("TERM") == "dumb") return look;
  look.colour = variable("NO_COLOR").empty();
  look.unicode = locale_is_utf8();
  winsize size{};
  if (::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
    look.width = std::clamp<std::size_t>(size.ws_col, kNarrowest, kWidest);
  return look;
}

std::string styled(const Look& look, Style style, std::string_view text) {
  constexpr std::array<std::string_view, 7> kCodes = {"", "1", "2", "33", "32", "36", "35"};
  const std::string_view code = kCodes[static_cast<std::size_t>(style)];
  if (!look.colour || code.empty() || text.empty()) return std::string(text);
  return "\x1b[" + std::string(code) + "m" + std::string(text) + "\x1b[0m";
}

std::string printable(const Look& look, std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const auto [point, size] = first_code_point(text);
    if (point < 0) {
      out += look.unicode ? kReplacement : std::string_view("?");
    } else if (is_unprintable(point) || (point > 126 && !look.unicode)) {
      out += escape(point);
    } else {
      out += text.substr(0, size);
    }
    text.remove_prefix(size);
  }
  return out;
}

std::string clipped(const Look& look, std::string_view text, std::size_t columns, bool at_start) {
  std::string shown = printable(look, text);
  const std::size_t total = columns_of(shown);
  if (total <= columns) return shown;
  const std::string dots = look.unicode ? "\xE2\x80\xA6" : "...";
  const std::size_t room = columns - std::min(columns, columns_of(dots));
  std::string kept;
  std::size_t used = 0;
  const std::size_t skipped = at_start ? total - room : 0;
  for_each_character(shown, [&](std::string_view piece, std::size_t width) {
    used += width;
    if (at_start) {
      if (used > skipped) kept += piece;
      return true;
    }
    if (used > room) return false;
    kept += piece;
    return true;
  });
  return at_start ? dots + kept : kept + dots;
}

std::string quoted_end(const Look& look, std::string_view text) {
  constexpr std::size_t kAround = 10;  // indent, what it is, quotes
  return "\"" + clipped(look, text, look.width - kAround, true) + "\"";
}

std::size_t columns_of(std::string_view text) {
  std::size_t columns = 0;
  for_each_character(text, [&](std::string_view, std::size_t width) {
    columns += width;
    return true;
  });
  return columns;
}

std::string padded(std::string text, std::size_t columns) {
  const std::size_t used = columns_of(text);
  if (used < columns) text.append(columns - used, ' ');
  return text;
}

std::string bar(const Look& look, std::uint64_t part, std::uint64_t whole, std::size_t columns) {
  const double share =
      whole == 0 ? 0 : static_cast<double>(std::min(part, whole)) / static_cast<double>(whole);
  auto filled = static_cast<std::size_t>(std::lround(share * static_cast<double>(columns)));
  // A little is not nothing, and nearly all is not all.
  if (part > 0 && columns > 1) filled = std::max<std::size_t>(filled, 1);
  if (part < whole && columns > 1) filled = std::min(filled, columns - 1);
  std::string out;
  for (std::size_t i = 0; i < columns; ++i) {
    const bool is_filled = i < filled;
    out += look.unicode ? (is_filled ? "\xE2\x96\x88" : "\xE2\x96\x91") : (is_filled ? "#" : "-");
  }
  return out;
}

std::string Table::render(std::string_view indent) const {
  std::vector<std::size_t> widths;
  for (const auto& row : rows_) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::size_t i = 0; i < row.size(); ++i)
      widths[i] = std::max(widths[i], columns_of(row[i]));
  }
  std::string out;
  for (const auto& row : rows_) {
    std::string line(indent);
    for (std::size_t i = 0; i < row.size(); ++i) {
      if (i > 0) line += "  ";
      const bool is_right = std::ranges::find(right_, i) != right_.end();
      if (is_right) line.append(widths[i] - columns_of(row[i]), ' ');
      line += is_right ? row[i] : padded(row[i], widths[i]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    out += line + "\n";
  }
  return out;
}

std::string side_by_side(const Look& look, const std::string& heading_a, std::string_view a,
                         const std::string& heading_b, std::string_view b) {
  const std::string line = look.unicode ? " \xE2\x94\x82 " : " | ";
  const std::size_t half = (look.width - columns_of(line) - 2) / 2;
  const auto left = wrapped(printable(look, a), half);
  const auto right = wrapped(printable(look, b), half);
  std::string out = "  " + styled(look, Style::kA, padded(clipped(look, heading_a, half), half)) +
                    line + styled(look, Style::kB, clipped(look, heading_b, half)) + "\n";
  for (std::size_t i = 0; i < std::max(left.size(), right.size()); ++i) {
    std::string row = "  " + padded(i < left.size() ? left[i] : "", half) + line +
                      (i < right.size() ? right[i] : "");
    row.erase(row.find_last_not_of(' ') + 1);
    out += row + "\n";
  }
  return out;
}

std::string grouped(std::uint64_t number) {
  std::string digits = std::to_string(number);
  for (std::size_t at = digits.size(); at > 3; at -= 3)
    digits.insert(at - 3, ",");
  return digits;
}

std::string counted(std::uint64_t number, std::string_view noun) {
  return grouped(number) + " " + std::string(noun) + (number == 1 ? "" : "s");
}

std::string utc_time(double unix_seconds) {
  constexpr double kYear9999 = 253402300799.0;
  if (!(unix_seconds > 0) || unix_seconds > kYear9999) return "unknown";
  const auto seconds = static_cast<std::time_t>(unix_seconds);
  std::tm parts{};
  if (::gmtime_r(&seconds, &parts) == nullptr) return "unknown";
  char text[40];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

std::string age(double unix_seconds, double now) {
  if (!(unix_seconds > 0)) return "unknown";
  const double seconds = now - unix_seconds;
  if (seconds < 1) return "just now";
  constexpr std::array<std::pair<double, const char*>, 5> kUnits = {
      {{31536000, "y"}, {86400, "d"}, {3600, "h"}, {60, "min"}, {1, "s"}}};
  for (const auto& [size, name] : kUnits) {
    if (seconds >= size)
      return grouped(static_cast<std::uint64_t>(seconds / size)) + " " + name + " ago";
  }
  return "just now";
}

}  // namespace thaw::cli
