#include "cli/bench.h"

#include <unistd.h>

#include <filesystem>

namespace thaw::cli {

void add_bench_options(CLI::App& bench, BenchSettings& settings) {
  bench.require_subcommand(1);
  CLI::App* gpu = bench.add_subcommand(
      "gpu", "Measure everything on this machine's GPU against its ceilings, some minutes");
  gpu->add_option("--output,-o", settings.output, "Write the table and every figure as JSON");
  gpu->add_option("--directory", settings.directory,
                  "Where 32 GB of files of a random 8B model may lie; /dev/shm needs no disk");
  gpu->add_option("--part", settings.parts,
                  "Measure only this; may be given several times: ops, model, fork_rounds, "
                  "kv_copies, adoption, weights, served");
  CLI::App* ranks = bench.add_subcommand(
      "ranks", "Measure two GPUs against one: a model in two ranks, and two workers");
  ranks->add_option("--output,-o", settings.output, "Write the table and every figure as JSON");
  ranks->add_option("--directory", settings.directory,
                    "Where 32 GB of files of a random 8B model may lie; /dev/shm needs no disk");
  ranks->add_option("--part", settings.parts,
                    "Measure only this; may be given several times: tensor_parallel, ranks");
  ranks->callback([&settings] { settings.over_two = true; });
}

Result<void> run_bench_gpu(const BenchSettings& settings) {
#ifndef THAW_WITH_CUDA
  (void)settings;
  return make_error(Errc::kUnsupported,
                    "bench gpu: this build has no CUDA, so there is nothing to measure; "
                    "configure with THAW_CUDA=ON where nvcc is");
#else
  const std::string binary =
      (std::filesystem::read_symlink("/proc/self/exe").parent_path() / "thaw_gpu_bench").string();
  std::vector<std::string> words{binary};
  if (settings.over_two) words.emplace_back("--ranks");
  const auto add = [&](const char* flag, const std::string& value) {
    if (!value.empty()) words.insert(words.end(), {flag, value});
  };
  add("--output", settings.output);
  add("--directory", settings.directory);
  for (const std::string& part : settings.parts)
    add("--part", part);
  std::vector<char*> argv;
  argv.reserve(words.size() + 1);
  for (std::string& word : words)
    argv.push_back(word.data());
  argv.push_back(nullptr);
  ::execv(binary.c_str(), argv.data());
  return make_error(Errc::kNotFound,
                    "bench gpu: " + binary + " is missing; `make build` makes the benches");
#endif
}

}  // namespace thaw::cli
