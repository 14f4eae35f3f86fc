#include "kvsnap/kv_document.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <optional>

#include <nlohmann/json.hpp>

#include "engine/base/base64.h"
#include "engine/base/hash.h"
#include "kvsnap/kv_description.h"

namespace thaw::kvsnap {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr int kFormat = 1;
// The public project's hashes have 32 bytes and a group's number of 4 behind them.
constexpr std::size_t kSidecarHashBytes = 36;

/// Reads keys of the document; the first failure sticks.
class Keys {
 public:
  explicit Keys(const json& object) : object_(object) {}

  template <typename T>
  T number(const char* key) {
    const json* value = find(key);
    if (value == nullptr) return 0;
    if (!value->is_number_unsigned() ||
        value->get<std::uint64_t>() > std::numeric_limits<T>::max()) {
      fail(key, "is no number that is right");
      return 0;
    }
    return value->get<T>();
  }
  std::string text(const char* key) {
    const json* value = find(key);
    if (value == nullptr) return "";
    if (value->is_string()) return value->get<std::string>();
    fail(key, "is no text");
    return "";
  }
  double seconds(const char* key) {
    const json* value = find(key);
    if (value == nullptr) return 0;
    if (value->is_number() && std::isfinite(value->get<double>()) && value->get<double>() >= 0)
      return value->get<double>();
    fail(key, "is no time");
    return 0;
  }
  Hash128 hash(const char* key) {
    const std::string digits = text(key);
    Hash128 hash;
    bool right = error_ || digits.size() == 2 * hash.bytes.size();
    for (std::size_t i = 0; i < hash.bytes.size() && right && !error_; ++i) {
      const char* first = digits.data() + 2 * i;
      right = std::from_chars(first, first + 2, hash.bytes[i], 16).ptr == first + 2;
    }
    if (!right) fail(key, "is no hash of 32 hex digits");
    return hash;
  }
  std::vector<TokenId> tokens(const char* key) {
    const json* value = find(key);
    std::vector<TokenId> tokens;
    if (value == nullptr) return tokens;
    if (!value->is_array()) {
      fail(key, "is no list");
      return tokens;
    }
    tokens.reserve(value->size());
    for (const json& token : *value) {
      if (!token.is_number_unsigned() ||
          token.get<std::uint64_t>() > std::numeric_limits<TokenId>::max()) {
        fail(key, "has an entry that is no token");
        break;
      }
      tokens.push_back(token.get<TokenId>());
    }
    return tokens;
  }
  void fail(const std::string& key, const std::string& what) {
    if (!error_) error_ = make_error(Errc::kDataLoss, "metadata: " + key + " " + what);
  }
  const std::optional<Error>& error() const { return error_; }

 private:
  const json* find(const char* key) {
    if (error_) return nullptr;
    const auto found = object_.find(key);
    if (found != object_.end()) return &*found;
    fail(key, "is missing");
    return nullptr;
  }

  const json& object_;
  std::optional<Error> error_;
};

/// The number behind `name` in a KV layout such as "bf16 [layers=30]...".
std::optional<std::uint64_t> layout_number(const std::string& layout, const std::string& name) {
  const auto at = layout.find(name + "=");
  if (at == std::string::npos) return std::nullopt;
  std::uint64_t value = 0;
  const char* first = layout.data() + at + name.size() + 1;
  const auto read = std::from_chars(first, layout.data() + layout.size(), value);
  if (read.ptr == first || value == 0) return std::nullopt;
  return value;
}

std::string torch_dtype(const std::string& layout) {
  if (layout.starts_with("bf16")) return "torch.bfloat16";
  if (layout.starts_with("f16")) return "torch.float16";
  if (layout.starts_with("f32")) return "torch.float32";
  return "";
}

}  // namespace

Result<std::string> KvDocument::to_json() const {
  const ordered_json out = {{"content", "kv"},
                            {"format", kFormat},
                            {"writer", writer},
                            {"model", owner.model},
                            {"adapter", owner.adapter},
                            {"tenant", owner.tenant},
                            {"cache_salt", owner.cache_salt},
                            {"engine_fingerprint", engine_fingerprint.to_hex()},
                            {"system_fingerprint", system_fingerprint},
                            {"cache_root", cache_root.to_hex()},
                            {"kv_layout", kv_layout},
                            {"block_size", block_size},
                            {"block_bytes", block_bytes},
                            {"tensor_parallel_rank", tp_rank},
                            {"tensor_parallel_size", tp_size},
                            {"prefill_seconds", prefill_seconds},
                            {"token_ids", token_ids}};
  try {
    return out.dump();
  } catch (const json::exception&) {
    return make_error(Errc::kInvalidArgument,
                      "tenant, cache salt, model or adapter is not UTF-8: KV of it stays here");
  }
}

Result<KvDocument> KvDocument::parse(std::string_view text) {
  const json object = json::parse(text, nullptr, false);
  if (!object.is_object()) return make_error(Errc::kDataLoss, "metadata: it is no JSON object");
  if (!object.contains("content"))
    return make_error(Errc::kUnsupported, "metadata: content is missing: thaw did not write it");
  Keys keys(object);
  const std::string content = keys.text("content");
  const auto format = keys.number<std::uint32_t>("format");
  if (const auto& error = keys.error()) return *error;
  if (content != "kv" || format != kFormat) {
    return make_error(Errc::kUnsupported, "the file does not hold KV in format " +
                                              std::to_string(kFormat) + " (its format is " +
                                              std::to_string(format) + ")");
  }
  KvDocument document;
  document.writer = keys.text("writer");
  document.owner = {keys.text("tenant"), keys.text("cache_salt"), keys.text("model"),
                    keys.text("adapter")};
  document.engine_fingerprint = keys.hash("engine_fingerprint");
  document.system_fingerprint = keys.text("system_fingerprint");
  document.cache_root = keys.hash("cache_root");
  document.kv_layout = keys.text("kv_layout");
  document.block_size = keys.number<std::uint32_t>("block_size");
  document.block_bytes = keys.number<std::uint64_t>("block_bytes");
  document.tp_rank = keys.number<std::uint32_t>("tensor_parallel_rank");
  document.tp_size = keys.number<std::uint32_t>("tensor_parallel_size");
  document.prefill_seconds = keys.seconds("prefill_seconds");
  document.token_ids = keys.tokens("token_ids");
  if (document.block_size == 0) keys.fail("block_size", "is 0");
  if (document.block_bytes == 0) keys.fail("block_bytes", "is 0");
  if (!keys.error() &&
      (document.token_ids.empty() || document.token_ids.size() % document.block_size != 0)) {
    keys.fail("token_ids",
              "are no positive multiple of the block of " + std::to_string(document.block_size));
  }
  if (!keys.error() &&
      document.block_bytes > std::numeric_limits<std::uint64_t>::max() / document.num_blocks()) {
    keys.fail("block_bytes", "is too large");
  }
  if (const auto& error = keys.error()) return *error;
  const TrunkOwner& owner = document.owner;
  if (document.cache_root !=
      make_cache_root(document.engine_fingerprint, owner.tenant, owner.cache_salt, owner.adapter)) {
    return make_error(Errc::kDataLoss,
                      "metadata: cache_root does not follow from fingerprint and owner");
  }
  return document;
}

std::string KvDocument::to_sidecar() const {
  const auto num_layers = layout_number(kv_layout, "layers");
  const auto num_kv_heads = layout_number(kv_layout, "kv_heads");
  const auto head_dim = layout_number(kv_layout, "head_dim");
  ordered_json block_ids = ordered_json::array();
  ordered_json hashes = ordered_json::array();
  Hash128 parent = cache_root;
  for (std::size_t block = 0; block < num_blocks(); ++block) {
    parent = chain_block_hash(parent, std::span(token_ids).subspan(block * block_size, block_size));
    std::array<std::byte, kSidecarHashBytes> bytes{};
    for (std::size_t i = 0; i < parent.bytes.size(); ++i)
      bytes[i] = std::byte{parent.bytes[i]};
    hashes.push_back(encode_base64(bytes));
    block_ids.push_back(block);
  }
  const auto known = [](const auto& value) {
    return value ? ordered_json(*value) : ordered_json();
  };
  ordered_json out = {{"num_blocks", num_blocks()},
                      {"block_ids", std::move(block_ids)},
                      {"block_hashes", std::move(hashes)},
                      {"num_layers", known(num_layers)},
                      {"block_shape", nullptr},
                      {"block_bytes", num_layers ? block_bytes / *num_layers : block_bytes},
                      {"dtype", torch_dtype(kv_layout)},
                      {"block_size", block_size},
                      {"slab_nbytes", num_layers ? block_bytes / *num_layers / 2 : block_bytes},
                      {"num_slots", num_blocks()},
                      // A region is a block of all layers, in this order.
                      {"layout", "thaw " + kv_layout}};
  if (num_kv_heads && head_dim) out["block_shape"] = {2, block_size, *num_kv_heads, *head_dim};
  return frame_kv_description(out.dump());
}

Result<void> check_kv_document(const KvDocument& document, const Hash128& engine_fingerprint,
                               const std::string& system_fingerprint, const KvFormat& format,
                               const TrunkOwner& owner) {
  const auto other = [](const std::string& what, const std::string& has,
                        const std::string& wanted) {
    return make_error(Errc::kUnsupported,
                      "KV refused: its " + what + " is " + has + ", this server's is " + wanted);
  };
  if (document.engine_fingerprint != engine_fingerprint) {
    return other("engine (weights, adapter, KV type, RoPE and kernels)",
                 document.system_fingerprint + " (" + document.engine_fingerprint.to_hex() + ")",
                 system_fingerprint + " (" + engine_fingerprint.to_hex() + ")");
  }
  if (document.kv_layout != format.kv_layout)
    return other("layout", document.kv_layout, format.kv_layout);
  if (document.block_size != format.block_size || document.block_bytes != format.block_bytes) {
    return other("block",
                 std::to_string(document.block_size) + " tokens in " +
                     std::to_string(document.block_bytes) + " bytes",
                 std::to_string(format.block_size) + " in " + std::to_string(format.block_bytes));
  }
  if (document.tp_rank != format.tp_rank || document.tp_size != format.tp_size) {
    return other("rank",
                 std::to_string(document.tp_rank) + " of " + std::to_string(document.tp_size),
                 std::to_string(format.tp_rank) + " of " + std::to_string(format.tp_size));
  }
  if (document.cache_root !=
      make_cache_root(engine_fingerprint, owner.tenant, owner.cache_salt, owner.adapter)) {
    return make_error(Errc::kUnauthenticated,
                      "KV refused: it belongs to another tenant, cache salt or adapter");
  }
  return {};
}

}  // namespace thaw::kvsnap
