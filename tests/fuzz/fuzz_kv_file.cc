// A file of KV: container, metadata, blocks against their checksums.

#include <cstdlib>
#include <vector>

#include "kvsnap/kv_file.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace thaw;
  using namespace thaw::kvsnap;
  static FuzzFile file;
  static ThreadPool threads(1);
  const std::string& path = file.write(data, size);
  const auto kv = KvFile::open(system_io(IoMode::kBuffered), path, threads);
  if (!kv) {
    if (kv.error().message.empty()) std::abort();
    return 0;
  }
  const KvDocument& document = kv->document();
  if (document.payload_bytes() > size) std::abort();
  std::vector<std::vector<std::byte>> blocks(document.num_blocks(),
                                             std::vector<std::byte>(document.block_bytes));
  const std::vector<std::span<std::byte>> spans(blocks.begin(), blocks.end());
  const auto read = kv->read(spans, threads);
  if (!read && read.error().message.empty()) std::abort();
  const auto again = KvDocument::parse(document.to_json().value());
  if (!again || again->token_ids != document.token_ids) std::abort();
  if (document.to_sidecar().size() < 12) std::abort();
  return 0;
}
