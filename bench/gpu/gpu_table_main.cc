// thaw_gpu_bench [--ranks] [--output FILE] [--directory DIR] [--part NAME]...: runs the GPU benches
// beside it, or those of two GPUs, one after the other, prints the table, and writes it with
// everything measured.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "bench/gpu/gpu_table.h"

namespace {

using thaw::bench::Json;

std::string output_of(const std::string& command) {
  std::string text;
  if (FILE* pipe = ::popen(command.c_str(), "r")) {
    char line[256];
    while (std::fgets(line, sizeof line, pipe) != nullptr)
      text += line;
    ::pclose(pipe);
  }
  while (!text.empty() && text.back() == '\n')
    text.pop_back();
  return text;
}

/// What was measured where, of what.
Json context(const Json& parts, const std::string& command) {
  const auto of_ops = [&](const char* name) {
    const Json::json_pointer where(std::string("/ops/context/") + name);
    return parts.contains(where) ? parts.at(where) : Json();
  };
  const char* commit = std::getenv("THAW_COMMIT");
  return {{"date", output_of("date -u +%Y-%m-%d")},
          {"gpu", parts.contains("ops")
                      ? of_ops("gpu")
                      : Json(output_of("nvidia-smi --query-gpu=name --format=csv,noheader | "
                                       "sort | uniq -c | sed 's/^ *//'"))},
          {"driver",
           output_of("nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1")},
          {"cuda", of_ops("driver")},
          {"commit", commit != nullptr ? std::string(commit)
                                       : output_of("git -C '" THAW_SOURCE_DIR
                                                   "' rev-parse --short HEAD 2>/dev/null")},
          {"cpu", output_of("sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1")},
          {"cores", std::thread::hardware_concurrency()},
          {"command", command}};
}

}  // namespace

int main(int argc, char** argv) try {
  namespace fs = std::filesystem;
  std::string output;
  std::string directory = fs::temp_directory_path().string();
  std::vector<std::string> only;
  bool ranks = false;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (flag == "--ranks") {
      ranks = true;
      --i;
      continue;
    }
    if (i + 1 == argc) throw std::invalid_argument(flag + " needs a value");
    const std::string value = argv[i + 1];
    if (flag == "--output") {
      output = value;
    } else if (flag == "--directory") {
      directory = value;
    } else if (flag == "--part") {
      only.push_back(value);
    } else {
      throw std::invalid_argument(flag + " is unknown; use --output, --directory, --part");
    }
  }
  const std::string binaries = fs::read_symlink("/proc/self/exe").parent_path().string();
  Json parts = Json::object();
  bool all_measured = true;
  for (const thaw::bench::Part& part :
       ranks ? thaw::bench::rank_parts(directory) : thaw::bench::gpu_parts(directory)) {
    if (!only.empty() && std::ranges::find(only, part.name) == only.end()) continue;
    std::fprintf(stderr, "measuring %s ...\n", part.name.c_str());
    parts[part.name] = thaw::bench::run_part(part, binaries);
    all_measured = all_measured && !parts[part.name].is_null();
  }
  const Json table = ranks ? thaw::bench::rank_table(parts) : thaw::bench::gpu_table(parts);
  std::printf("%s", thaw::bench::to_markdown(table).c_str());
  if (!output.empty()) {
    const Json all = {{"context", context(parts, ranks ? "thaw bench ranks" : "thaw bench gpu")},
                      {"table", table},
                      {"parts", parts}};
    std::ofstream file(output);
    if (!(file << all.dump(1) << "\n").flush()) throw std::runtime_error("cannot write " + output);
    std::printf("\nwrote %s\n", output.c_str());
  }
  return all_measured ? 0 : 1;
} catch (const std::exception& failure) {
  std::fprintf(stderr, "thaw_gpu_bench: %s\n", failure.what());
  return 1;
}
