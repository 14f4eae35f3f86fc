// One safetensors file.

#include "engine/checkpoint/safetensors.h"
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/fuzz_tensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace thaw;
  static FuzzFile file;
  const std::string& path = file.write(data, size);
  std::vector<checkpoint::UnsupportedTensor> unsupported;
  static_cast<void>(checkpoint::SafetensorsFiles::open_file(path));
  if (const auto opened = checkpoint::SafetensorsFiles::open_file(path, &unsupported))
    read_all(*opened);
  return 0;
}
