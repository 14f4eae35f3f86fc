#pragma once

#include <string>
#include <string_view>

#include "coalescer/openai/served_models.h"

namespace thaw::coalescer {

/// GET /v1/models as Anthropic's clients read it: one page of the served names, as `limit`,
/// `after_id` and `before_id` of the query say. Errors: a parameter that is wrong.
/// Source: platform.claude.com/docs/en/api/models-list
ApiResult<std::string> message_models_body(const ServedModels& models, std::string_view query);
/// One of them.
std::string message_model_body(const std::string& name, const ServedModel& model);

}  // namespace thaw::coalescer
