// A container: header, table, payloads against their checksums, read both ways.

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "engine/base/crc32c.h"
#include "kvsnap/container_reader.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace thaw;
  using namespace thaw::kvsnap;
  static FuzzFile file;
  static ThreadPool threads(1);
  const std::string& path = file.write(data, size);
  const auto reader = ContainerReader::open(system_io(IoMode::kBuffered), path);
  if (!reader) {
    if (reader.error().message.empty()) std::abort();
    return 0;
  }
  bool all_read = true;
  for (const Region& region : reader->regions()) {
    if (region.size_bytes > size || region.offset > size - region.size_bytes) std::abort();
    std::vector<std::byte> payload(region.size_bytes);
    const bool read = reader->read(region, payload, threads).has_value();
    if (read && reader->has_checksums() && crc32c(payload) != region.crc32c) std::abort();
    if (!std::ranges::equal(
            payload,
            std::as_bytes(std::span(data, size)).subspan(region.offset, region.size_bytes))) {
      std::abort();
    }
    all_read = all_read && read;
  }
  if (reader->verify(threads).has_value() != all_read) std::abort();
  return 0;
}
