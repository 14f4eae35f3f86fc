// thaw_weights_bench [directory]: uploads, pinning and swaps of 16 GB of weights, as JSON.

#include <cstdio>
#include <exception>
#include <filesystem>

#include "bench/gpu/weights.h"

int main(int argc, char** argv) try {
  thaw::bench::WeightOptions options;
  options.directory = argc > 1 ? argv[1] : std::filesystem::temp_directory_path().string();
  std::printf("%s\n", thaw::bench::to_json(thaw::bench::measure_weights(options)).c_str());
  return 0;
} catch (const std::exception& failure) {
  std::fprintf(stderr, "thaw_weights_bench: %s\n", failure.what());
  return 1;
}
