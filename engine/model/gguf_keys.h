#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "engine/base/result.h"
#include "engine/checkpoint/gguf.h"
#include "engine/checkpoint/stored_tensor.h"

namespace thaw::model {

/// Reads the metadata of one architecture: key "block_count" is "llama.block_count" in the file.
/// The first error sticks: read everything, then ask for error().
class GgufKeys {
 public:
  GgufKeys(const checkpoint::GgufFile& file, const checkpoint::TensorSource& tensors,
           std::string architecture)
      : file_(file), tensors_(tensors), architecture_(std::move(architecture)) {}

  const checkpoint::GgufFile& file() const { return file_; }
  /// Of all parts of a split file.
  const checkpoint::TensorSource& tensors() const { return tensors_; }

  /// An integer in 1 .. limit.
  int required(const std::string& key, std::int64_t limit);
  int optional(const std::string& key, std::int64_t fallback, std::int64_t limit);
  /// A positive number.
  double real(const std::string& key, double fallback);
  /// Nothing where the key is absent or of another type.
  std::optional<std::int64_t> find_int(const std::string& key) const;
  std::optional<double> find_real(const std::string& key) const;
  std::optional<std::string> find_text(const std::string& key) const;
  bool has_tensor(const std::string& name) const { return tensors_.find_tensor(name) != nullptr; }

  /// "llama.block_count", for messages.
  std::string full(const std::string& key) const { return architecture_ + "." + key; }
  void fail(Errc code, const std::string& what);
  const std::optional<Error>& error() const { return error_; }

 private:
  int checked(const std::string& key, std::int64_t value, std::int64_t limit);

  const checkpoint::GgufFile& file_;
  const checkpoint::TensorSource& tensors_;
  std::string architecture_;
  std::optional<Error> error_;
};

}  // namespace thaw::model
