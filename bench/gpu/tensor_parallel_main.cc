// thaw_tensor_parallel_bench: exchanges between two GPUs and an 8B shape over them, as JSON.

#include <cstdio>
#include <exception>

#include "bench/gpu/tensor_parallel.h"

int main() try {
  std::printf("%s\n", thaw::bench::to_json(thaw::bench::measure_tensor_parallel()).c_str());
  return 0;
} catch (const std::exception& failure) {
  std::fprintf(stderr, "thaw_tensor_parallel_bench: %s\n", failure.what());
  return 1;
}
