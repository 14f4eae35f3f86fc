// thaw_served_bench [--device D] [--directory DIR] [--repeats N] [--thaw BINARY] [--tiny]: `thaw
// serve` on a random 8B model (or a tiny one) by HTTP, as JSON.

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <stdexcept>
#include <string>

#include "bench/gpu/served_model.h"

int main(int argc, char** argv) try {
  namespace fs = std::filesystem;
  thaw::bench::ServedOptions options;
  options.binary = (fs::read_symlink("/proc/self/exe").parent_path() / "thaw").string();
  options.directory = fs::temp_directory_path().string();
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    if (flag == "--tiny") {
      options.shape = thaw::bench::CheckpointShape::tiny();
      continue;
    }
    if (i + 1 == argc) throw std::invalid_argument(flag + " needs a value");
    const std::string value = argv[++i];
    if (flag == "--device") {
      options.device = value;
    } else if (flag == "--directory") {
      options.directory = value;
    } else if (flag == "--repeats") {
      options.repeats = std::stoi(value);
    } else if (flag == "--thaw") {
      options.binary = value;
    } else {
      throw std::invalid_argument(flag + " is unknown");
    }
  }
  std::printf("%s\n", thaw::bench::to_json(thaw::bench::measure_served(options)).c_str());
  return 0;
} catch (const std::exception& failure) {
  std::fprintf(stderr, "thaw_served_bench: %s\n", failure.what());
  return 1;
}
