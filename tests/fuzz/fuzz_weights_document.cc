// The metadata of a file of weights, whose checksum is right whatever it says, over two regions.

#include <cstring>
#include <string>
#include <vector>

#include "cli/weights_file.h"
#include "engine/base/crc32c.h"
#include "engine/checkpoint/gguf.h"
#include "tests/fuzz/fuzz_file.h"
#include "tests/fuzz/fuzz_tensors.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace thaw;
  using namespace thaw::kvsnap;
  static FuzzFile file;
  const std::vector<std::byte> zeros(4096);
  const auto document = std::as_bytes(std::span(data, size));
  const ContainerHeader header{
      2,
      "",
      {{RegionKind::kWeights, 0, 4096, 8192, crc32c(zeros)},
       {RegionKind::kWeights, 1, 56, 12288, crc32c(std::span(zeros).first(56))},
       {RegionKind::kMetadata, 0, size, 16384, crc32c(document)}}};
  std::vector<std::uint8_t> bytes(16384 + size);
  const auto head = encode_container(header);
  std::memcpy(bytes.data(), head.data(), head.size());
  if (size > 0) std::memcpy(bytes.data() + 16384, data, size);
  const std::string& path = file.write(bytes.data(), bytes.size());
  const auto opened = cli::WeightsFile::open(system_io(IoMode::kBuffered), path);
  if (!opened) return 0;
  read_all(*opened);
  const auto again = opened->document().to_json();
  if (again && !cli::WeightsDocument::parse(*again)) std::abort();
  static_cast<void>(
      checkpoint::GgufFile::open_metadata("metadata", opened->document().gguf_metadata));
  return 0;
}
