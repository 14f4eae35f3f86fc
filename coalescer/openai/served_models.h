#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "coalescer/openai/api_error.h"
#include "coalescer/openai/model_description.h"
#include "coalescer/openai/text_codec.h"
#include "engine/base/result.h"

namespace thaw::coalescer {

/// One model that requests may name, and what it takes to speak with it.
struct ServedModel {
  /// What clients call it; the first one stands in answers and in GenerateRequest::model.
  std::vector<std::string> names;
  std::uint32_t max_model_len = 0;
  ModelDescription description;
  std::shared_ptr<const TextCodec> codec;
  std::string weights;  ///< names them as they are computed with; empty: nobody knows
  std::string path;  ///< of its files; told to operators only
  std::int64_t created = 0;  ///< seconds since the epoch

  const std::string& name() const { return names.front(); }
  bool is_called(const std::string& name) const;
};

using ServedModelPtr = std::shared_ptr<const ServedModel>;

/// The models of a server, in the order they came; the first stands for requests that name none.
/// Whoever got a model keeps it, whatever becomes of the table. Thread-safe.
class ServedModels {
 public:
  /// Errors (kInvalidArgument): no name, an empty one, a very long one, one that is taken, a
  /// context of less than two tokens.
  Result<void> add(ServedModel model);
  /// False where no model has that name.
  bool remove(const std::string& name);
  /// Null where none is called so. Empty: the first.
  ServedModelPtr find(const std::string& name) const;
  std::vector<ServedModelPtr> list() const;
  /// The same models as of now, with `model` first, whether or not it is one of them.
  std::shared_ptr<const ServedModels> led_by(const ServedModelPtr& model) const;

 private:
  mutable std::mutex mutex_;
  std::vector<ServedModelPtr> models_;  // guarded by mutex_
};

/// The model of a request, or the 404 that says what is served.
ApiResult<ServedModelPtr> require_model(const ServedModels& models, const std::string& name);

}  // namespace thaw::coalescer
