#pragma once

#include <limits>
#include <span>
#include <string_view>

#include "coalescer/openai/shape.h"

namespace thaw::coalescer {

// What requests are answered with. Nothing reads answers by these; tests hold every answer to them,
// field by field.
extern const Shape kErrorAnswer;
extern const Shape kChatAnswer;
extern const Shape kChatChunk;
extern const Shape kCompletionsAnswer;
extern const Shape kCompletionsChunk;
extern const Shape kResponsesAnswer;
extern const Shape kInputTokensAnswer;
extern const Shape kResponseDeletedAnswer;
extern const Shape kResponseItemsAnswer;
extern const Shape kMessagesAnswer;
extern const Shape kMessagesErrorAnswer;
extern const Shape kCountTokensAnswer;
extern const Shape kMessagesModelsAnswer;
extern const Shape kMessagesModelAnswer;
extern const Shape kForksAnswer;
extern const Shape kForksRecentAnswer;
extern const Shape kModelsAnswer;
extern const Shape kModelAnswer;
extern const Shape kTokenizeAnswer;
extern const Shape kDetokenizeAnswer;
extern const Shape kSessionAnswer;
extern const Shape kSessionsAnswer;
extern const Shape kSessionCheckpointAnswer;
extern const Shape kSessionDeletedAnswer;
extern const Shape kSessionExportAnswer;
extern const Shape kSessionTreeAnswer;
extern const Shape kPoolAnswer;
extern const Shape kSnapshotsAnswer;
extern const Shape kSnapshotAnswer;
extern const Shape kPreloadAnswer;
extern const Shape kHealthAnswer;
extern const Shape kVersionAnswer;

// The events of their streams.
extern const Field kChatEvent;
extern const Field kCompletionsEvent;
extern const Field kForksEvent;
extern const Field kResponsesEvent;
extern const Field kMessagesEvent;

// Parts of them that several have.
extern const Shape kUsageAnswer;
extern const Shape kExplanationAnswer;
extern const Shape kSessionUsageAnswer;
extern const Shape kTokenLogprobAnswer;
extern const Field kThawAnswer[1];

/// Of numbers that have none.
inline constexpr double kNoBound = std::numeric_limits<double>::infinity();

constexpr Shape answer(std::string_view name, std::string_view about, std::span<const Field> fields,
                       std::span<const Field> more = {}, std::span<const Field> most = {}) {
  return {name, about, {fields, more, most}, {}, true};
}

}  // namespace thaw::coalescer
