// thaw_fork_rounds_bench: fork rounds of 4 and 16 branches on an 8B shape, as JSON.

#include <cstdio>
#include <exception>

#include "bench/gpu/fork_rounds.h"

int main() try {
  std::printf("%s\n", thaw::bench::to_json(thaw::bench::measure_fork_rounds({4, 16}, 7)).c_str());
  return 0;
} catch (const std::exception& failure) {
  std::fprintf(stderr, "thaw_fork_rounds_bench: %s\n", failure.what());
  return 1;
}
