#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace thaw::cli {

/// What an output can show. Without a terminal: plain ASCII, for files and pipes.
struct Look {
  bool colour = false;
  bool unicode = false;  ///< lines, bars and dots of it
  std::size_t width = 100;  ///< columns
};

/// Of stdout, by what it is and by the environment (NO_COLOR, TERM, the locale).
Look look_of_stdout();

enum class Style { kPlain, kBold, kDim, kId, kShared, kA, kB };
std::string styled(const Look& look, Style style, std::string_view text);

/// Text of files as it may go to a terminal: on one line, control characters as in JSON (\n,
/// \u001b), invalid UTF-8 replaced, and outside of ASCII only where `look` can show it.
std::string printable(const Look& look, std::string_view text);
/// The same, cut to `columns` with "..." or "…" at the end; `at_start`: at the start.
std::string clipped(const Look& look, std::string_view text, std::size_t columns,
                    bool at_start = false);

/// The end of a text in quotes, so that spaces show, on one line.
std::string quoted_end(const Look& look, std::string_view text);

/// Columns that UTF-8 takes on a terminal; colours take none.
std::size_t columns_of(std::string_view text);
/// With spaces behind it up to `columns`.
std::string padded(std::string text, std::size_t columns);

/// `part` of `whole` filled, e.g. "█████░░░" or "#####---".
std::string bar(const Look& look, std::uint64_t part, std::uint64_t whole, std::size_t columns);

/// Rows of cells, as wide as the widest in their column, two spaces apart.
class Table {
 public:
  /// Columns whose index is in `right` are aligned to the right.
  explicit Table(std::vector<std::size_t> right = {}) : right_(std::move(right)) {}
  void add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  std::string render(std::string_view indent = "") const;

 private:
  std::vector<std::size_t> right_;
  std::vector<std::vector<std::string>> rows_;
};

/// Two texts beside each other, each wrapped to half of the width, under their headings.
std::string side_by_side(const Look& look, const std::string& heading_a, std::string_view a,
                         const std::string& heading_b, std::string_view b);

/// "1,040,000".
std::string grouped(std::uint64_t number);
/// "1,040 tokens", "1 token".
std::string counted(std::uint64_t number, std::string_view noun);
/// "2026-11-25 22:10:03 UTC"; "unknown" for 0.
std::string utc_time(double unix_seconds);
/// "3 min ago", with `now` in Unix seconds; "unknown" for 0.
std::string age(double unix_seconds, double now);

}  // namespace thaw::cli
