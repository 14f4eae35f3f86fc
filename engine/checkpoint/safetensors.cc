#include "engine/checkpoint/safetensors.h"

#include <simdjson.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <utility>

#include "engine/base/hash.h"
#include "engine/checkpoint/in_quotes.h"
#include "engine/checkpoint/safetensors_header.h"
#include "engine/checkpoint/text_file.h"

namespace thaw::checkpoint {
namespace {

constexpr std::size_t kMaxIndexDepth = 8;
constexpr const char* kSingleName = "model.safetensors";
constexpr const char* kIndexName = "model.safetensors.index.json";

/// What weight_map says: tensor name -> file name.
Result<std::map<std::string, std::string>> read_weight_map(const std::string& index_path) {
  const auto bad = [&](const std::string& what) {
    return make_error(Errc::kDataLoss, index_path + ": " + what);
  };
  const Result<std::string> text = read_text_file(index_path);
  if (!text) return text.error();
  simdjson::dom::parser parser;
  simdjson::dom::object map;
  auto status = parser.allocate(text->size(), kMaxIndexDepth);
  if (status == simdjson::SUCCESS) status = parser.parse(*text)["weight_map"].get(map);
  if (status != simdjson::SUCCESS) {
    return bad("it is not a JSON object with a weight_map (" +
               std::string(simdjson::error_message(status)) + ")");
  }
  std::map<std::string, std::string> files;
  for (const auto field : map) {
    const std::string tensor = in_quotes(field.key);
    std::string_view file;
    if (field.value.get(file) != simdjson::SUCCESS)
      return bad("the file of tensor " + tensor + " is no string");
    // A name inside the directory: an index must not lead anywhere else.
    if (file.empty() || file.size() > 255 || file.starts_with('.') ||
        file.find_first_of(std::string_view("/\0", 2)) != std::string_view::npos) {
      return bad("tensor " + tensor + " lies in " + in_quotes(file) +
                 "; the name of a file beside the index is right");
    }
    if (!files.emplace(field.key, file).second) return bad("tensor " + tensor + " occurs twice");
  }
  if (files.empty()) return bad("its weight_map names no tensor");
  return files;
}

}  // namespace

Result<SafetensorsFiles> SafetensorsFiles::open(const std::string& directory,
                                                std::vector<UnsupportedTensor>* unsupported) {
  const std::filesystem::path folder(directory);
  SafetensorsFiles files;
  files.path_ = directory;
  std::error_code error;
  const std::string index = folder / kIndexName;
  const bool sharded = !std::filesystem::exists(folder / kSingleName, error) &&
                       std::filesystem::exists(index, error);
  const auto added = sharded ? files.add_shards(index, unsupported)
                             : files.add_file(folder / kSingleName, unsupported);
  if (!added) return added.error();
  if (const std::string config = folder / "config.json"; std::filesystem::exists(config, error)) {
    Result<Mapping> mapping = map_file(config);
    if (!mapping) return std::move(mapping).error();
    files.config_ = *std::move(mapping);
    files.files_.push_back(config);
  }
  return files;
}

Result<SafetensorsFiles> SafetensorsFiles::open_file(const std::string& path,
                                                     std::vector<UnsupportedTensor>* unsupported) {
  SafetensorsFiles files;
  files.path_ = path;
  if (const auto added = files.add_file(path, unsupported); !added) return added.error();
  return files;
}

Result<void> SafetensorsFiles::add_file(const std::string& path,
                                        std::vector<UnsupportedTensor>* unsupported) {
  Result<Mapping> mapping = map_file(path);
  if (!mapping) return std::move(mapping).error();
  const std::span<const std::byte> bytes = mapping->bytes();
  Result<std::vector<SafetensorsEntry>> entries = read_safetensors_header(path, bytes);
  if (!entries) return std::move(entries).error();
  for (SafetensorsEntry& entry : *entries) {
    if (!entry.dtype) {
      if (unsupported == nullptr) {
        return make_error(Errc::kUnsupported, path + ": tensor " + in_quotes(entry.name) +
                                                  " has type " + in_quotes(entry.dtype_name) +
                                                  "; supported are F32, F16, BF16");
      }
      unsupported->push_back({std::move(entry.name), std::move(entry.dtype_name)});
      continue;
    }
    const auto [place, is_new] = tensor_index_.emplace(std::move(entry.name), tensors_.size());
    if (!is_new) {
      return make_error(Errc::kDataLoss, path + ": tensor " + in_quotes(place->first) +
                                             " is in another of the model's files too");
    }
    std::ranges::reverse(entry.shape);
    tensors_.push_back({place->first, *entry.dtype, std::move(entry.shape),
                        bytes.subspan(entry.begin, entry.size_bytes)});
  }
  mappings_.push_back(*std::move(mapping));
  files_.push_back(path);
  return {};
}

Result<void> SafetensorsFiles::add_shards(const std::string& index_path,
                                          std::vector<UnsupportedTensor>* unsupported) {
  const auto weight_map = read_weight_map(index_path);
  if (!weight_map) return weight_map.error();
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : *weight_map)
    shards.insert(shard);
  std::map<std::string, std::set<std::string, std::less<>>> found;
  const std::filesystem::path folder = std::filesystem::path(index_path).parent_path();
  for (const std::string& shard : shards) {
    const std::string path = folder / shard;
    std::error_code error;
    if (!std::filesystem::exists(path, error)) {
      return make_error(Errc::kNotFound, path + " is missing, but " + kIndexName +
                                             " names it; was the model downloaded to the end?");
    }
    const std::size_t tensors_before = tensors_.size();
    const std::size_t unsupported_before = unsupported == nullptr ? 0 : unsupported->size();
    if (const auto added = add_file(path, unsupported); !added) return added.error();
    for (std::size_t i = tensors_before; i < tensors_.size(); ++i)
      found[shard].emplace(tensors_[i].name);
    for (std::size_t i = unsupported_before; unsupported != nullptr && i < unsupported->size(); ++i)
      found[shard].emplace((*unsupported)[i].name);
  }
  for (const auto& [tensor, shard] : *weight_map) {
    if (found[shard].contains(tensor)) continue;
    return make_error(Errc::kDataLoss, (folder / shard).string() + ": tensor " + in_quotes(tensor) +
                                           " is missing, but " + kIndexName + " says it is there");
  }
  return {};
}

const StoredTensor* SafetensorsFiles::find_tensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

Hash128 SafetensorsFiles::digest() const {
  std::string digests = hash_bytes(config_.bytes()).to_hex();
  for (const Mapping& mapping : mappings_)
    digests += hash_and_drop(mapping).to_hex();
  return hash_text(digests);
}

}  // namespace thaw::checkpoint
