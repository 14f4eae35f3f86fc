#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "engine/base/memory_map.h"
#include "engine/base/result.h"
#include "engine/base/types.h"
#include "engine/checkpoint/stored_tensor.h"

namespace thaw::checkpoint {

/// Metadata arrays keep their element type; strings are views into the mapped file.
using GgufValue = std::variant<std::uint64_t, std::int64_t, double, bool, std::string_view,
                               std::vector<std::string_view>, std::vector<std::int64_t>,
                               std::vector<double>, std::vector<bool>>;

/// A GGUF model, mapped read-only; views stay valid while it lives. Versions 2 and 3. Every offset
/// and length is checked against the file's size before it is used. A model that was split over
/// several files ("name-00001-of-00003.gguf") is one: the metadata is that of its first part.
/// Source: the GGUF specification in the ggml repository (docs/gguf.md).
class GgufFile final : public TensorSource {
 public:
  /// `path`: the file, or any part of a split model. Where `unsupported` is given, tensors of types
  /// that are not supported are listed there, else they are errors. Errors (each names the path):
  /// cannot open, wrong magic, unsupported version, truncated, tensor type not supported (named,
  /// with the supported ones), duplicate tensor, a part that is missing or of another model.
  static Result<GgufFile> open(const std::string& path,
                               std::vector<UnsupportedTensor>* unsupported = nullptr);

  /// What metadata_bytes() gave, without any tensor. `path` is named in errors.
  static Result<GgufFile> open_metadata(std::string path, std::vector<std::byte> bytes);
  /// The file's bytes up to the end of its metadata; of a split model, those of its first part.
  std::span<const std::byte> metadata_bytes() const { return metadata_bytes_; }

  const std::string& path() const override { return path_; }
  const std::vector<StoredTensor>& tensors() const override { return tensors_; }
  const StoredTensor* find_tensor(std::string_view name) const override;
  bool has(std::string_view key) const { return metadata_.contains(key); }

  /// Typed metadata; nullopt where absent or of another type. Integers of any width convert.
  std::optional<std::int64_t> get_int(std::string_view key) const;
  std::optional<double> get_float(std::string_view key) const;
  std::optional<bool> get_bool(std::string_view key) const;
  std::optional<std::string_view> get_string(std::string_view key) const;
  const std::vector<std::string_view>* get_strings(std::string_view key) const;
  const std::vector<std::int64_t>* get_ints(std::string_view key) const;
  const std::vector<double>* get_floats(std::string_view key) const;

  /// SHA-256 of the whole file (about 2 GB/s on one core); of a split model over those of its
  /// parts.
  Hash128 digest() const override;
  std::vector<std::string> files() const override { return files_; }
  void release(const StoredTensor& tensor) const override { drop_pages(tensor.data); }

 private:
  /// One file alone.
  static Result<GgufFile> open_part(const std::string& path,
                                    std::vector<UnsupportedTensor>* unsupported);
  /// All parts of the split model that `opened`, read from `path`, is one of.
  static Result<GgufFile> open_all_parts(const std::string& path, const GgufFile& opened,
                                         std::vector<UnsupportedTensor>* unsupported);
  Result<void> add_part(GgufFile part);

  std::string path_;
  std::vector<std::string> files_;  ///< one a part
  std::vector<Mapping> mappings_;  ///< one a part
  std::vector<std::byte> owned_;  ///< of open_metadata()
  std::span<const std::byte> metadata_bytes_;
  std::map<std::string_view, GgufValue> metadata_;
  std::vector<StoredTensor> tensors_;
  std::map<std::string_view, std::size_t> tensor_index_;
};

}  // namespace thaw::checkpoint
