#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/base/memory_map.h"
#include "engine/base/result.h"
#include "engine/base/thread_pool.h"
#include "engine/base/types.h"
#include "engine/checkpoint/dtype.h"

namespace thaw::checkpoint {

/// A tensor as a checkpoint stores it; the views belong to the source that it came from.
struct StoredTensor {
  std::string_view name;
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;  ///< shape[0] is the contiguous dimension (inputs), as in GGUF
  std::span<const std::byte> data;

  std::int64_t cols() const { return shape.empty() ? 1 : shape[0]; }
  std::int64_t rows() const;  ///< product of the other dimensions
};

/// A tensor whose type is not supported, for those who want to know all of them.
struct UnsupportedTensor {
  std::string name;
  std::string dtype;  ///< as the file's format calls it
};

/// The tensors of a checkpoint, whichever files hold them. Immutable and thread-safe; views stay
/// valid while it lives.
class TensorSource {
 public:
  virtual ~TensorSource() = default;
  /// File or folder, for messages.
  virtual const std::string& path() const = 0;
  virtual const std::vector<StoredTensor>& tensors() const = 0;
  /// Null where there is none of that name.
  virtual const StoredTensor* find_tensor(std::string_view name) const = 0;
  /// Names the content of all files that decide what the model computes.
  virtual Hash128 digest() const = 0;
  /// Compares the files with the checksums that they hold, where their format has any: one pass.
  /// Errors: kDataLoss, naming file and place.
  virtual Result<void> verify(ThreadPool& threads) const {
    static_cast<void>(threads);
    return {};
  }
  /// The files that digest() covers.
  virtual std::vector<std::string> files() const { return {path()}; }
  /// `tensor` is not needed for now: its pages may leave the memory. Reading it stays valid.
  virtual void release(const StoredTensor& tensor) const { static_cast<void>(tensor); }
};

/// SHA-256 of a mapped file (about 2 GB/s on one core); its pages leave the memory as they are
/// read.
Hash128 hash_and_drop(const Mapping& file);

}  // namespace thaw::checkpoint
