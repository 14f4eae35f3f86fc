#include "kvsnap/kv_description.h"

#include <set>
#include <utility>

#include "kvsnap/json_keys.h"

namespace thaw::kvsnap {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::string_view kDescriptionMagic("THAWKV\0\0", 8);
constexpr std::size_t kTextOffset = 12;
constexpr std::size_t kShapeExtents = 4;
/// No engine has more.
constexpr std::uint64_t kMaxExtent = 1U << 20;
constexpr std::uint32_t kMaxLayers = 1U << 16;
constexpr std::uint64_t kMaxBlockBytes = 1ULL << 32;
constexpr std::uint64_t kMaxPayloadBytes = 1ULL << 62;
constexpr std::uint64_t kMaxBlockId = (1ULL << 31) - 1;

/// Null where a block has none; anything but texts was never written.
std::optional<std::vector<std::string>> read_hashes(const json& list) {
  std::vector<std::string> hashes;
  for (const json& hash : list) {
    if (!hash.is_null() && !hash.is_string()) return std::nullopt;
    hashes.push_back(hash.is_string() ? hash.get<std::string>() : std::string());
  }
  return hashes;
}

/// After check_blocks(), which knows that num_layers is not 0.
void check_shape(const KvDescription& kv, JsonKeys& keys) {
  if (kv.block_bytes == 0 || kv.block_bytes > kMaxBlockBytes ||
      kv.num_blocks > kMaxPayloadBytes / kv.block_bytes / kv.num_layers) {
    return keys.fail("block_bytes is " + std::to_string(kv.block_bytes) + ", which cannot be");
  }
  if (kv.block_shape.empty()) return;  // of blocks that have no such shape
  if (kv.block_shape.size() != kShapeExtents || kv.block_shape[0] != 2)
    return keys.fail("block_shape is not [2, block_size, kv_heads, head_dim]");
  std::uint64_t elements = 1;
  for (const std::uint64_t extent : kv.block_shape) {
    if (extent == 0 || extent > kMaxExtent || elements > kMaxBlockBytes / extent)
      return keys.fail("block_shape has an extent of " + std::to_string(extent) +
                       ", which cannot be");
    elements *= extent;
  }
  const auto element_bytes = torch_element_bytes(kv.dtype);
  if (element_bytes && elements * *element_bytes != kv.block_bytes) {
    keys.fail("block_bytes is " + std::to_string(kv.block_bytes) + ", but " +
              std::to_string(elements) + " elements of " + kv.dtype + " take " +
              std::to_string(elements * *element_bytes));
  }
}

void check_blocks(const KvDescription& kv, JsonKeys& keys) {
  const auto count = [&](const char* name, std::size_t found) {
    if (found != kv.num_blocks) {
      keys.fail(std::string(name) + " has " + std::to_string(found) + " entries for " +
                std::to_string(kv.num_blocks) + " blocks");
    }
  };
  count("block_ids", kv.block_ids.size());
  count("block_hashes", kv.block_hashes.size());
  std::set<std::uint64_t> seen;
  for (const std::uint64_t id : kv.block_ids) {
    if (id > kMaxBlockId) keys.fail("block id " + std::to_string(id) + " cannot be");
    if (!seen.insert(id).second) keys.fail("block id " + std::to_string(id) + " occurs twice");
  }
  if (kv.num_layers == 0 || kv.num_layers > kMaxLayers)
    keys.fail("num_layers is " + std::to_string(kv.num_layers) + ", which cannot be");
  if (kv.block_size == 0 || kv.block_size > kMaxExtent)
    keys.fail("block_size is " + std::to_string(kv.block_size) + ", which cannot be");
}

/// Figures that follow from others and must agree with them.
void check_derived(const KvDescription& kv, JsonKeys& keys) {
  const auto same = [&](const char* name, std::uint64_t right) {
    std::optional<std::uint64_t> found;
    keys.read(name, found);
    if (found && *found != right) {
      keys.fail(std::string(name) + " is " + std::to_string(*found) + ", not " +
                std::to_string(right));
    }
  };
  same("slab_nbytes", kv.block_bytes / 2);
  same("num_slots", kv.num_blocks);
  same("coalesced_bytes", kv.payload_bytes());
}

}  // namespace

std::optional<std::uint64_t> torch_element_bytes(std::string_view dtype) {
  if (dtype == "torch.float32") return 4;
  if (dtype == "torch.float16" || dtype == "torch.bfloat16") return 2;
  if (dtype == "torch.uint8" || dtype == "torch.int8" || dtype.starts_with("torch.float8_"))
    return 1;
  return std::nullopt;
}

bool is_kv_description(std::string_view bytes) {
  return bytes.starts_with(kDescriptionMagic);
}

Result<std::string_view> kv_description_text(std::string_view bytes) {
  if (!is_kv_description(bytes) || bytes.size() < kTextOffset) {
    return make_error(Errc::kInvalidArgument,
                      "it does not start as a description of KV does, with THAWKV, two zero bytes "
                      "and a length");
  }
  std::uint32_t size = 0;
  for (std::size_t i = 0; i < sizeof(size); ++i)
    size |=
        static_cast<std::uint32_t>(static_cast<unsigned char>(bytes[kDescriptionMagic.size() + i]))
        << (8 * i);
  bytes.remove_prefix(kTextOffset);
  if (size > bytes.size()) {
    return make_error(Errc::kDataLoss, "truncated: it claims " + std::to_string(size) +
                                           " bytes of JSON and has " +
                                           std::to_string(bytes.size()));
  }
  return bytes.substr(0, size);
}

std::string KvDescription::encode() const {
  ordered_json out = {{"num_blocks", num_blocks}, {"block_ids", block_ids}};
  out["block_hashes"] = ordered_json::array();
  for (const std::string& hash : block_hashes)
    out["block_hashes"].push_back(hash.empty() ? ordered_json(nullptr) : ordered_json(hash));
  out["num_layers"] = num_layers;
  out["block_shape"] = block_shape;
  out["block_bytes"] = block_bytes;
  out["dtype"] = dtype;
  out["block_size"] = block_size;
  out["slab_nbytes"] = block_bytes / 2;
  out["num_slots"] = num_blocks;
  if (!layout.empty()) out["layout"] = layout;
  if (layout == "coalesced") out["coalesced_bytes"] = payload_bytes();
  return frame_kv_description(out.dump());
}

std::string frame_kv_description(std::string_view json) {
  std::string bytes(kDescriptionMagic);
  for (std::size_t i = 0; i < sizeof(std::uint32_t); ++i)
    bytes += static_cast<char>(json.size() >> (8 * i));
  return bytes.append(json);
}

Result<KvDescription> KvDescription::decode(std::string_view bytes) {
  const auto text = kv_description_text(bytes);
  if (!text) return text.error();
  const json parsed = json::parse(*text, nullptr, false);
  JsonKeys keys(parsed, "description of KV");
  KvDescription kv;
  keys.read("num_blocks", kv.num_blocks);
  if (auto read = keys.result(); !read) return std::move(read).error();
  if (kv.num_blocks == 0) return kv;  // of an engine that held nothing: the rest is left out
  keys.read("block_ids", kv.block_ids);
  keys.read("num_layers", kv.num_layers);
  keys.read_or("block_shape", kv.block_shape);
  keys.read("block_bytes", kv.block_bytes);
  keys.read("dtype", kv.dtype);
  keys.read("block_size", kv.block_size);
  keys.read_or("layout", kv.layout);
  const json* hashes = keys.find("block_hashes");
  if (hashes == nullptr || !hashes->is_array()) {
    keys.fail("block_hashes is no list");
  } else if (auto read = read_hashes(*hashes)) {
    kv.block_hashes = *std::move(read);
  } else {
    keys.fail("block_hashes holds something other than texts");
  }
  if (keys.result()) check_blocks(kv, keys);
  if (keys.result()) check_shape(kv, keys);
  if (keys.result()) check_derived(kv, keys);
  if (auto read = keys.result(); !read) return std::move(read).error();
  return kv;
}

}  // namespace thaw::kvsnap
