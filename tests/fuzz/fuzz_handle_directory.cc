// A handle directory: handle.json, kv.thawkv.meta and kv.thawkv in this order, each behind the
// length of the one before as four bytes, and a rollout made of the first.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kvsnap/handle_lineage.h"
#include "kvsnap/rollout_pivots.h"
#include "tests/fuzz/fuzz_directory.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace thaw;
  using namespace thaw::kvsnap;
  std::string_view rest(reinterpret_cast<const char*>(data), size);
  FuzzDirectory io;
  for (const char* name : {"handle.json", "kv.thawkv.meta", "kv.thawkv"}) {
    if (rest.size() < 4) break;
    std::uint32_t length = 0;
    for (int i = 0; i < 4; ++i)
      length |= static_cast<std::uint32_t>(static_cast<unsigned char>(rest[i])) << (8 * i);
    rest.remove_prefix(4);
    const std::string_view file = rest.substr(0, length);
    rest.remove_prefix(file.size());
    if (!file.empty()) io.files["h/" + std::string(name)] = file;
  }
  const std::string json = io.files["h/handle.json"];
  if (const auto rollout = Rollout::parse(json)) {
    const std::vector<Rollout> both{*rollout, *rollout};
    if (!find_pivots(both).empty()) std::abort();
    if (const auto text = rollout->to_json(); !text || !Rollout::parse(*text)) std::abort();
  }
  const auto opened = HandleDirectory::open(io, "h");
  if (!opened) {
    if (opened.error().message.empty()) std::abort();
    return 0;
  }
  if (const auto& kv = opened->kv()) {
    if (kv->block_ids.size() != kv->num_blocks || kv->block_hashes.size() != kv->num_blocks)
      std::abort();
    if (opened->kv_bytes() > 0 && kv->payload_bytes() > size) std::abort();
    if (const auto again = KvDescription::decode(kv->encode());
        kv->num_blocks > 0 && (!again || again->encode() != kv->encode())) {
      std::abort();
    }
  }
  static ThreadPool threads(1);
  static_cast<void>(opened->verify(threads));
  const HandleComparison with_itself = compare_handles(*opened, *opened);
  if (with_itself.only_a_blocks != 0 || with_itself.only_b_blocks != 0) std::abort();
  if (!opened->save("t", opened->handle(), true)) std::abort();
  const auto saved = HandleDirectory::open(io, "t");
  if (!saved || saved->files() != opened->files()) std::abort();
  return 0;
}
