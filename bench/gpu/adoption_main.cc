// thaw_adoption_bench [bytes]: what adopting weights on the device costs, as JSON.

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "bench/gpu/adoption.h"

int main(int argc, char** argv) try {
  // Of an 8B model in bf16.
  const std::size_t bytes = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 16'060'522'496;
  std::printf("%s\n", thaw::bench::to_json(thaw::bench::measure_adoption(bytes, 9)).c_str());
  return 0;
} catch (const std::exception& failure) {
  std::fprintf(stderr, "thaw_adoption_bench: %s\n", failure.what());
  return 1;
}
