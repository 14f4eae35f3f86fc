// thaw_ranks_bench [--directory DIR] [--thaw BINARY] [--devices D] [--keep] [--part NAME]...: an 8B
// model over two GPUs, as one group of two ranks and as two workers, against one GPU, as JSON.
// Parts: one_gpu, two_ranks, two_workers, moves, rank_deaths.

#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "bench/gpu/served_model.h"
#include "bench/gpu/two_workers.h"
#include "engine/base/log.h"

namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;
using thaw::bench::ServedOptions;

/// A part that fails costs itself alone.
template <typename F>
void measure(Json& all, const std::vector<std::string>& only, const char* name, F&& figures) {
  if (!only.empty() && std::ranges::find(only, name) == only.end()) return;
  std::fprintf(stderr, "measuring %s ...\n", name);
  try {
    all[name] = Json::parse(thaw::bench::to_json(figures()));
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "%s: %s\n", name, failure.what());
    all[name] = nullptr;
  }
}

std::string image_in(const fs::path& images) {
  for (const auto& entry : fs::directory_iterator(images))
    if (entry.path().extension() == ".thawimg") return entry.path().string();
  throw std::runtime_error("no packed image in " + images.string());
}

}  // namespace

int main(int argc, char** argv) try {
  ServedOptions served;
  served.binary = (fs::read_symlink("/proc/self/exe").parent_path() / "thaw").string();
  fs::path directory = fs::temp_directory_path();
  thaw::bench::TwoDeviceOptions two;
  bool keep = false;
  std::vector<std::string> only;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--keep") {
      keep = true;
      continue;
    }
    if (i + 1 == argc) throw std::invalid_argument(flag + " needs a value");
    const std::string value = argv[++i];
    if (flag == "--directory") {
      directory = value;
    } else if (flag == "--thaw") {
      served.binary = value;
    } else if (flag == "--devices") {
      two.devices = value;
    } else if (flag == "--part") {
      only.push_back(value);
    } else {
      throw std::invalid_argument(flag + " is unknown");
    }
  }
  thaw::set_log_level("warn");
  const fs::path prepared = directory / "thaw-ranks-bench";
  served.prepared = prepared.string();
  thaw::bench::prepare_served(served);
  Json all = Json::object();
  const auto serve = [&](const char* name, std::vector<std::string> arguments, bool starts) {
    served.arguments = std::move(arguments);
    served.measures_starts = starts;
    measure(all, only, name, [&] { return thaw::bench::measure_served(served); });
  };
  served.device = "cuda";
  serve("one_gpu", {"--kv-bytes", "16GiB"}, false);
  served.device = two.devices;
  serve("two_ranks", {"--kv-bytes", "16GiB", "--tensor-parallel", "2"}, true);
  serve("two_workers", {"--kv-bytes", "16GiB", "--workers", "2", "--arena-bytes", "2GiB"}, false);
  two.binary = served.binary;
  two.image = image_in(prepared / "cache" / "images");
  measure(all, only, "moves", [&] { return thaw::bench::measure_moves(two); });
  measure(all, only, "rank_deaths", [&] { return thaw::bench::measure_rank_deaths(two); });
  if (!keep) {
    std::error_code ignored;
    fs::remove_all(prepared, ignored);
  }
  std::printf("%s\n", all.dump(1).c_str());
  return 0;
} catch (const std::exception& failure) {
  std::fprintf(stderr, "thaw_ranks_bench: %s\n", failure.what());
  return 1;
}
