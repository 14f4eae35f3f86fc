#pragma once

#include <cstdint>
#include <string>
#include <variant>

#include "coalescer/openai/api_error.h"

namespace thaw::coalescer {

/// What operators may do to the models of a running server. The calls block: they read files and
/// wait for workers. The server makes them from a thread of its own, one after another.
class ModelAdmin {
 public:
  struct Loaded {
    double seconds = 0;  ///< until the model had a slot; 0: it had one
    std::uint64_t weight_bytes = 0;
  };

  virtual ~ModelAdmin() = default;

  /// Loads a model's files and serves it as `name`. Errors, with their status: a path that is not
  /// allowed (403), no such file (404), a name that is taken, a file that is no model, one that
  /// does not fit into memory (400).
  virtual ApiResult<std::monostate> register_model(const std::string& name,
                                                   const std::string& path) = 0;
  /// Takes no more requests of the model. True: done; false: it is not served.
  virtual ApiResult<bool> unregister_model(const std::string& name) = 0;
  /// Gives the model a slot, if it has none.
  virtual ApiResult<Loaded> load_model(const std::string& name) = 0;
};

}  // namespace thaw::coalescer
