#include "coalescer/openai/served_models.h"

#include <algorithm>
#include <utility>

#include "engine/base/call_limits.h"

namespace thaw::coalescer {
namespace {

/// Bytes of a client's name that an error repeats, and names that it offers.
constexpr std::size_t kMaxNameShown = 200;
constexpr std::size_t kMaxOffered = 8;

}  // namespace

bool ServedModel::is_called(const std::string& name) const {
  return std::ranges::find(names, name) != names.end();
}

Result<void> ServedModels::add(ServedModel model) {
  const auto wrong = [](std::string message) {
    return make_error(Errc::kInvalidArgument, std::move(message));
  };
  if (model.names.empty()) return wrong("a served model has no name; at least one is needed");
  if (model.max_model_len < 2) {
    return wrong("max_model_len of model `" + model.name() + "` is " +
                 std::to_string(model.max_model_len) + "; it must be at least 2");
  }
  const std::scoped_lock lock(mutex_);
  for (const std::string& name : model.names) {
    if (name.empty()) return wrong("the name of a served model is empty");
    if (name.size() > kMaxCallNameBytes) {
      return wrong("the name of a served model has " + std::to_string(name.size()) +
                   " bytes; at most " + std::to_string(kMaxCallNameBytes) + " are accepted");
    }
    if (std::ranges::any_of(models_, [&](const auto& other) { return other->is_called(name); }))
      return wrong("a model called `" + name + "` is served already; choose another name");
  }
  models_.push_back(std::make_shared<const ServedModel>(std::move(model)));
  return {};
}

bool ServedModels::remove(const std::string& name) {
  const std::scoped_lock lock(mutex_);
  return std::erase_if(models_, [&](const auto& model) { return model->is_called(name); }) > 0;
}

ServedModelPtr ServedModels::find(const std::string& name) const {
  const std::scoped_lock lock(mutex_);
  const auto found = std::ranges::find_if(
      models_, [&](const auto& model) { return name.empty() || model->is_called(name); });
  return found == models_.end() ? nullptr : *found;
}

std::vector<ServedModelPtr> ServedModels::list() const {
  const std::scoped_lock lock(mutex_);
  return models_;
}

std::shared_ptr<const ServedModels> ServedModels::led_by(const ServedModelPtr& model) const {
  auto led = std::make_shared<ServedModels>();
  led->models_ = list();
  std::erase(led->models_, model);
  led->models_.insert(led->models_.begin(), model);
  return led;
}

ApiResult<ServedModelPtr> require_model(const ServedModels& models, const std::string& name) {
  if (auto model = models.find(name)) return model;
  const std::vector<ServedModelPtr> served = models.list();
  std::string offered;
  for (std::size_t i = 0; i < std::min(served.size(), kMaxOffered); ++i)
    offered += (i == 0 ? "`" : ", `") + served[i]->name() + "`";
  if (served.size() > kMaxOffered) offered += ", ...";
  ApiError error =
      invalid_field("model",
                    "the model `" + name.substr(0, kMaxNameShown) + "` is not served here; " +
                        offered + (served.size() == 1 ? " is" : " are"),
                    "model_not_found");
  error.status = 404;
  return error;
}

}  // namespace thaw::coalescer
