#include "cli/weights_document.h"

#include <utility>

#include <nlohmann/json.hpp>

#include "engine/base/base64.h"
#include "engine/checkpoint/in_quotes.h"

namespace thaw::cli {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr int kFormat = 1;
constexpr int kNumDTypes = static_cast<int>(checkpoint::DType::kIQ4_NL) + 1;

std::optional<checkpoint::DType> dtype_by_name(const std::string& name) {
  for (int i = 0; i < kNumDTypes; ++i) {
    const auto dtype = static_cast<checkpoint::DType>(i);
    if (checkpoint::dtype_name(dtype) == name) return dtype;
  }
  return std::nullopt;
}

ordered_json tensor_json(const FrozenTensor& tensor) {
  ordered_json out = {{"name", tensor.name},
                      {"dtype", checkpoint::dtype_name(tensor.dtype)},
                      {"shape", tensor.shape},
                      {"region", tensor.region},
                      {"offset", tensor.offset}};
  if (tensor.rows) out["rows"] = {tensor.rows->first, tensor.rows->second};
  return out;
}

/// Reads keys of an object; the first failure sticks.
class Keys {
 public:
  Keys(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object_.is_object()) fail("it is no JSON object");
  }

  /// `value` of the key; an error where it is missing or of another type.
  template <typename T>
  void read(const char* key, T& value) {
    if (error_) return;
    const auto found = object_.find(key);
    if (found == object_.end()) return fail(std::string(key) + " is missing");
    if (!holds<T>(*found)) return fail(std::string(key) + " is of another type");
    value = found->template get<T>();
  }
  /// The same where it may be missing or null.
  template <typename T>
  void read(const char* key, std::optional<T>& value) {
    if (error_ || !object_.contains(key) || object_[key].is_null()) return;
    read(key, value.emplace());
  }
  const json& list(const char* key) {
    static const json empty = json::array();
    if (error_) return empty;
    const auto found = object_.find(key);
    if (found != object_.end() && found->is_array()) return *found;
    fail(std::string(key) + " is no list");
    return empty;
  }

  bool has(const char* key) const { return object_.is_object() && object_.contains(key); }
  const json& operator[](const char* key) const { return object_[key]; }
  void fail(const std::string& what) {
    if (!error_) error_ = make_error(Errc::kDataLoss, where_ + ": " + what);
  }
  const std::optional<Error>& error() const { return error_; }

 private:
  template <typename T>
  static bool holds(const json& value) {
    if constexpr (std::is_same_v<T, std::string>) {
      return value.is_string();
    } else if constexpr (std::is_same_v<T, std::vector<std::int64_t>>) {
      for (const json& item : value)
        if (!item.is_number_integer()) return false;
      return value.is_array();
    } else if constexpr (std::is_same_v<T, std::map<std::string, std::string>>) {
      for (const json& item : value)
        if (!item.is_string()) return false;
      return value.is_object();
    } else {
      return value.is_number_unsigned() &&
             value.get<std::uint64_t>() <= std::numeric_limits<T>::max();
    }
  }

  const json& object_;
  std::string where_;
  std::optional<Error> error_;
};

Result<FrozenTensor> read_tensor(const json& item, std::size_t index) {
  Keys keys(item, "metadata: tensor " + std::to_string(index));
  FrozenTensor tensor;
  std::string dtype;
  keys.read("name", tensor.name);
  keys.read("dtype", dtype);
  keys.read("shape", tensor.shape);
  keys.read("region", tensor.region);
  keys.read("offset", tensor.offset);
  std::optional<std::vector<std::int64_t>> rows;
  keys.read("rows", rows);
  if (const auto known = dtype_by_name(dtype)) {
    tensor.dtype = *known;
  } else {
    keys.fail("type " + checkpoint::in_quotes(dtype) + " is not known");
  }
  if (rows) {
    if (rows->size() != 2 || tensor.shape.size() < 2 || (*rows)[0] < 0 || (*rows)[1] < (*rows)[0]) {
      keys.fail("rows is no range of a matrix");
    } else {
      tensor.rows = {(*rows)[0], (*rows)[1]};
    }
  }
  if (const auto& error = keys.error()) return *error;
  return tensor;
}

}  // namespace

Result<std::string> WeightsDocument::to_json() const {
  ordered_json out = {{"content", "weights"},
                      {"format", kFormat},
                      {"writer", writer},
                      {"model", model},
                      {"fingerprint", fingerprint},
                      {"weights_digest", weights_digest},
                      {"config", ordered_json::parse(config_json)},
                      {"dtype", dtype},
                      {"container", container},
                      {"tensor_parallel_rank", rank},
                      {"tensor_parallel_size", num_ranks},
                      {"tokenizer_hash", tokenizer_hash}};
  out["chat_template_hash"] =
      chat_template_hash ? ordered_json(*chat_template_hash) : ordered_json(nullptr);
  out["tensors"] = ordered_json::array();
  for (const FrozenTensor& tensor : tensors)
    out["tensors"].push_back(tensor_json(tensor));
  if (container == "GGUF") {
    out["gguf_metadata"] = encode_base64(gguf_metadata);
  } else {
    out["texts"] = texts;
    if (chat_template) {
      ordered_json& stored = out["chat_template"];
      stored = {{"file", chat_template->file}, {"source", chat_template->source}};
      if (!chat_template->tool_source.empty()) stored["tool_source"] = chat_template->tool_source;
    }
  }
  try {
    return out.dump();
  } catch (const json::exception&) {
    return make_error(Errc::kInvalidArgument,
                      "a name or text of the model is not UTF-8, which a .thaw file cannot hold");
  }
}

Result<WeightsDocument> WeightsDocument::parse(std::string_view text) {
  const json parsed = json::parse(text, nullptr, false);
  if (parsed.is_object() && !parsed.contains("content")) {
    return make_error(Errc::kUnsupported,
                      "its metadata does not say what the file holds; `thaw freeze` writes files "
                      "that say it");
  }
  Keys keys(parsed, "metadata");
  std::string content;
  std::uint32_t format = 0;
  keys.read("content", content);
  keys.read("format", format);
  if (const auto& error = keys.error()) return *error;
  if (content != "weights" || format != kFormat) {
    return make_error(Errc::kUnsupported, "it holds " + checkpoint::in_quotes(content) +
                                              " of format " + std::to_string(format) +
                                              "; supported are weights of format 1");
  }
  WeightsDocument document;
  keys.read("writer", document.writer);
  keys.read("model", document.model);
  keys.read("fingerprint", document.fingerprint);
  keys.read("weights_digest", document.weights_digest);
  keys.read("dtype", document.dtype);
  keys.read("container", document.container);
  keys.read("tensor_parallel_rank", document.rank);
  keys.read("tensor_parallel_size", document.num_ranks);
  keys.read("tokenizer_hash", document.tokenizer_hash);
  keys.read("chat_template_hash", document.chat_template_hash);
  if (document.num_ranks < 1 || document.num_ranks > kMaxRanks ||
      document.rank >= document.num_ranks) {
    keys.fail("rank " + std::to_string(document.rank) + " of " +
              std::to_string(document.num_ranks) + " cannot be");
  }
  if (keys.has("config") && keys["config"].is_object()) {
    document.config_json = keys["config"].dump();
  } else {
    keys.fail("config is no JSON object");
  }
  for (const json& item : keys.list("tensors")) {
    auto tensor = read_tensor(item, document.tensors.size());
    if (!tensor) return std::move(tensor).error();
    document.tensors.push_back(*std::move(tensor));
  }
  if (document.container == "GGUF") {
    std::string encoded;
    keys.read("gguf_metadata", encoded);
    auto bytes = decode_base64(encoded);
    if (!bytes) keys.fail("gguf_metadata is no base64");
    if (bytes) document.gguf_metadata = *std::move(bytes);
  } else if (document.container == "safetensors") {
    keys.read("texts", document.texts);
    if (keys.has("chat_template")) {
      Keys chat(keys["chat_template"], "metadata: chat_template");
      checkpoint::StoredTemplate stored;
      chat.read("file", stored.file);
      chat.read("source", stored.source);
      std::optional<std::string> tool_source;
      chat.read("tool_source", tool_source);
      stored.tool_source = std::move(tool_source).value_or("");
      if (const auto& error = chat.error()) return *error;
      document.chat_template = std::move(stored);
    }
  } else {
    keys.fail("container " + checkpoint::in_quotes(document.container) +
              " is not known; known are GGUF and safetensors");
  }
  if (const auto& error = keys.error()) return *error;
  return document;
}

}  // namespace thaw::cli
