#include "cli/rewind_drift.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <utility>

#include "cli/handle_report.h"
#include "kvsnap/whole_file.h"

namespace thaw::cli {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::size_t kMaxResultsBytes = std::size_t{64} << 20;

/// 0 also where there is no number.
int sign(const json& pivot, const char* key) {
  const auto found = pivot.find(key);
  if (found == pivot.end() || !found->is_number()) return 0;
  const auto value = found->get<double>();
  return value > 0 ? 1 : value < 0 ? -1 : 0;
}

bool is_true(const json& pivot, const char* key) {
  const auto found = pivot.find(key);
  if (found == pivot.end()) return false;
  return found->is_boolean() ? found->get<bool>() : found->is_number() && found->get<double>() != 0;
}

double share(std::uint64_t part, std::uint64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

std::string percent(std::uint64_t part, std::uint64_t whole) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f %%", share(part, whole) * 100);
  return text;
}

std::string points(double value) {
  char text[48];
  std::snprintf(text, sizeof text, "%+.1f points", value);
  return text;
}

std::string text_at(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

}  // namespace

double DriftStats::excess_points() const {
  return (share(refeed_flips, eligible) - share(floor_flips, eligible)) * 100;
}

Result<std::optional<DriftStats>> read_drift(std::string_view text, const std::string& name) {
  const json parsed = json::parse(text, nullptr, false);
  if (!parsed.is_object() || !parsed.contains("pivots") || !parsed["pivots"].is_array())
    return make_error(Errc::kDataLoss, "it is no JSON object with a list of pivots");
  DriftStats stats;
  stats.name = name;
  stats.experiment = text_at(parsed, "experiment");
  if (const auto config = parsed.find("config"); config != parsed.end() && config->is_object())
    if (const std::string configured = text_at(*config, "name"); !configured.empty())
      stats.name = configured;
  for (const json& pivot : parsed["pivots"]) {
    if (!pivot.is_object()) return make_error(Errc::kDataLoss, "a pivot is no JSON object");
    ++stats.num_pivots;
    stats.refeed_divergences += is_true(pivot, "greedy_divergence_refeed") ? 1 : 0;
    stats.floor_divergences += is_true(pivot, "greedy_divergence_exact2") ? 1 : 0;
    const int exact = sign(pivot, "A_exact1");
    const int again = sign(pivot, "A_exact2");
    const int refeed = sign(pivot, "A_refeed");
    if (exact == 0 && again == 0 && refeed == 0) continue;
    ++stats.eligible;
    stats.refeed_flips += exact != refeed ? 1 : 0;
    stats.floor_flips += exact != again ? 1 : 0;
    stats.phantom += exact != refeed && exact == again ? 1 : 0;
  }
  if (stats.eligible == 0) return std::optional<DriftStats>();
  return std::optional(std::move(stats));
}

ordered_json drift_json(const std::vector<DriftStats>& stats) {
  ordered_json out = ordered_json::array();
  for (const DriftStats& one : stats) {
    out.push_back({{"name", one.name},
                   {"experiment", one.experiment},
                   {"n_pivots", one.num_pivots},
                   {"n_eligible", one.eligible},
                   {"refeed_flips", one.refeed_flips},
                   {"floor_flips", one.floor_flips},
                   {"refeed_rate", share(one.refeed_flips, one.eligible)},
                   {"floor_rate", share(one.floor_flips, one.eligible)},
                   {"excess_pp", one.excess_points()},
                   {"phantom", one.phantom},
                   {"gdiv_refeed_rate", share(one.refeed_divergences, one.num_pivots)},
                   {"gdiv_floor_rate", share(one.floor_divergences, one.num_pivots)}});
  }
  return {{"results", std::move(out)}};
}

std::string format_drift(const Look& look, const std::vector<DriftStats>& stats) {
  if (stats.size() != 1) {
    Table table({1, 2, 3, 4});
    table.add({"config", "eligible", "re-fed", "floor", "excess"});
    for (const DriftStats& one : stats)
      table.add({styled(look, Style::kBold, clipped(look, one.name, 40)), grouped(one.eligible),
                 percent(one.refeed_flips, one.eligible), percent(one.floor_flips, one.eligible),
                 points(one.excess_points())});
    return table.render();
  }
  constexpr std::size_t kBarColumns = 30;
  const DriftStats& one = stats.front();
  const auto row = [&](std::uint64_t flips) {
    return bar(look, flips, one.eligible, kBarColumns) + "  " + percent(flips, one.eligible) +
           ", " + grouped(flips) + " of " + grouped(one.eligible);
  };
  Table table;
  table.add({"re-fed", row(one.refeed_flips)});
  table.add({"resumed", row(one.floor_flips) + " (the floor)"});
  table.add({"excess", points(one.excess_points()) + " above the floor"});
  table.add({"phantom", counted(one.phantom, "pivot") + " flip when re-fed, but not when resumed"});
  table.add({"greedy", "the first token differs at " +
                           percent(one.refeed_divergences, one.num_pivots) +
                           " of the pivots re-fed, " +
                           percent(one.floor_divergences, one.num_pivots) + " resumed"});
  return "drift of " + styled(look, Style::kBold, printable(look, one.name)) +
         (one.experiment.empty() ? "" : ", " + printable(look, one.experiment)) + ": " +
         counted(one.num_pivots, "pivot") + ", " + grouped(one.eligible) +
         " with an advantage\n\n  flips of its sign against an exact resume\n" + table.render("  ");
}

Result<void> run_rewind_drift(const std::string& path, bool as_json) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (!fs::exists(path, error)) return make_error(Errc::kNotFound, path + ": no such file");
  std::vector<std::string> files;
  if (fs::is_directory(path, error)) {
    for (fs::directory_iterator entry(path, error), end; !error && entry != end;
         entry.increment(error)) {
      if (entry->path().extension() == ".json") files.push_back(entry->path().string());
    }
    if (error) return io_error("cannot read the directory " + path, error.value());
    std::ranges::sort(files);
  } else {
    files.push_back(path);
  }
  kvsnap::FileIo& io = kvsnap::system_io(kvsnap::IoMode::kNoLinks);
  std::vector<DriftStats> stats;
  for (const std::string& file : files) {
    const auto text = kvsnap::read_whole_file(io, file, kMaxResultsBytes);
    if (!text) return text.error();
    auto read = read_drift(*text, fs::path(file).stem().string());
    if (!read) return make_error(read.error().code, file + ": " + read.error().message);
    if (auto& found = *read) stats.push_back(std::move(*found));
  }
  std::ranges::sort(stats, [](const DriftStats& a, const DriftStats& b) {
    const double of_a = a.excess_points();
    const double of_b = b.excess_points();
    return of_a == of_b ? a.name < b.name : of_a > of_b;
  });
  if (as_json) {
    print_json(drift_json(stats));
  } else if (stats.empty()) {
    std::printf("no pivots with an advantage in %s\n", path.c_str());
  } else {
    std::fputs(format_drift(look_of_stdout(), stats).c_str(), stdout);
  }
  return {};
}

}  // namespace thaw::cli
