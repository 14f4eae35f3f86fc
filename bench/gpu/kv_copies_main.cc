// thaw_kv_copies_bench [block_bytes num_blocks]: rates of KV snapshots and restores, as JSON.

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "bench/gpu/kv_copies.h"

int main(int argc, char** argv) try {
  thaw::bench::KvCopyOptions options;
  if (argc == 3) {
    options.block_bytes = std::strtoull(argv[1], nullptr, 10);
    options.num_blocks = std::strtoull(argv[2], nullptr, 10);
  }
  std::printf("%s\n", thaw::bench::to_json(thaw::bench::measure_kv_copies(options)).c_str());
  return 0;
} catch (const std::exception& failure) {
  std::fprintf(stderr, "thaw_kv_copies_bench: %s\n", failure.what());
  return 1;
}
