#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/checkpoint/dtype.h"

namespace thaw::checkpoint {

/// A tensor as the header of a safetensors file describes it, checked against the file's size.
struct SafetensorsEntry {
  std::string name;
  std::string dtype_name;  ///< as written: "BF16"
  std::optional<DType> dtype;  ///< none: a type that is not supported
  std::vector<std::int64_t> shape;  ///< as written, outermost dimension first
  std::uint64_t begin = 0;  ///< from the start of the file
  std::uint64_t size_bytes = 0;
};

/// Entries of a whole file `bytes`, in the order of their data, which they fill without overlap and
/// without holes. Errors name `path` and the tensor.
Result<std::vector<SafetensorsEntry>> read_safetensors_header(const std::string& path,
                                                              std::span<const std::byte> bytes);

}  // namespace thaw::checkpoint
