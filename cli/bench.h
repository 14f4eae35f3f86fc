#pragma once

#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "engine/base/result.h"

namespace thaw::cli {

struct BenchSettings {
  std::string output;  ///< JSON file; empty: the table alone
  std::string directory;  ///< for 32 GB of files; empty: where temporary files go
  std::vector<std::string> parts;  ///< empty: all
  bool over_two = false;  ///< `ranks`: two GPUs against one
};

/// Declares `gpu` and `ranks` and their flags below `bench`; they write to `settings`, which must
/// outlive the parse.
void add_bench_options(CLI::App& bench, BenchSettings& settings);

/// Becomes thaw_gpu_bench, which lies beside this binary: returns only with an error. kUnsupported
/// where this build has no CUDA; kNotFound where the benches were not built.
Result<void> run_bench_gpu(const BenchSettings& settings);

}  // namespace thaw::cli
