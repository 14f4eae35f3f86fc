#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/memory_map.h"
#include "engine/base/result.h"
#include "engine/checkpoint/stored_tensor.h"

namespace thaw::checkpoint {

/// The safetensors files of a Hugging Face directory, mapped read-only; nothing is copied. Every
/// offset and length is checked against the file's size before it is used. Source: the format's
/// description in the safetensors repository (README.md).
class SafetensorsFiles final : public TensorSource {
 public:
  /// Opens model.safetensors of `directory`, or else the shards that model.safetensors.index.json
  /// names. F32, F16 and BF16; where `unsupported` is given, tensors of other types are listed
  /// there, else they are errors. Errors name file and tensor: no such file, a shard that is
  /// missing, a header that is no header, a type, shape, offset or size that cannot be, tensors
  /// that overlap or leave a hole, a name that occurs twice or not where the index says.
  static Result<SafetensorsFiles> open(const std::string& directory,
                                       std::vector<UnsupportedTensor>* unsupported = nullptr);
  /// One file alone.
  static Result<SafetensorsFiles> open_file(const std::string& path,
                                            std::vector<UnsupportedTensor>* unsupported = nullptr);

  /// The directory, or the file where it was opened alone.
  const std::string& path() const override { return path_; }
  const std::vector<StoredTensor>& tensors() const override { return tensors_; }
  const StoredTensor* find_tensor(std::string_view name) const override;

  std::size_t num_files() const { return mappings_.size(); }

  /// SHA-256 over all files (about 2 GB/s on one core) and over the directory's config.json, which
  /// decides as much of what is computed.
  Hash128 digest() const override;
  std::vector<std::string> files() const override { return files_; }
  void release(const StoredTensor& tensor) const override { drop_pages(tensor.data); }

 private:
  Result<void> add_file(const std::string& path, std::vector<UnsupportedTensor>* unsupported);
  Result<void> add_shards(const std::string& index_path,
                          std::vector<UnsupportedTensor>* unsupported);

  std::string path_;
  std::vector<std::string> files_;  ///< that are mapped
  std::vector<Mapping> mappings_;
  Mapping config_;  ///< config.json; empty where there is none
  std::vector<StoredTensor> tensors_;
  std::map<std::string, std::size_t, std::less<>> tensor_index_;  ///< its keys hold the names
};

}  // namespace thaw::checkpoint
