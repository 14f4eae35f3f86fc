#pragma once

#include <string_view>

#include "coalescer/openai/shape.h"

namespace thaw::coalescer {

// Bodies of requests.
extern const Shape kChatShape;
extern const Shape kMessagesShape;
extern const Shape kCountTokensShape;
extern const Shape kResponsesShape;
extern const Shape kCompletionsShape;
extern const Shape kForksShape;
extern const Shape kTokenizeShape;
extern const Shape kDetokenizeShape;
extern const Shape kSessionCreateShape;
extern const Shape kSessionForkShape;
extern const Shape kSessionCheckpointShape;
extern const Shape kSessionRewindShape;
extern const Shape kSessionExportShape;
extern const Shape kSessionImportShape;
extern const Shape kRegisterShape;
extern const Shape kPreloadShape;

// Parts of them that several have. Where two parts of a Shape have the same name, the first counts.
extern const Shape kMessageShape;
extern const Shape kBreakpointShape;
extern const Shape kRefusalPartShape;
extern const Field kSchemas[3];  ///< forms of a JSON schema
extern const Field kSamplingFields[25];
extern const Field kOtherFields[15];
extern const Field kHeadFields[3];
extern const Field kToolFields[5];
extern const Field kTemplateFields[5];
extern const Field kFormatFields[6];

/// A time of a day at most, without leading zeros.
inline constexpr std::string_view kTtlPattern =
    "^(([1-9][0-9]{0,3}|[1-7][0-9]{4}|8[0-5][0-9]{3}|86[0-3][0-9]{2}|86400)s|"
    "([1-9][0-9]{0,2}|1[0-3][0-9]{2}|14[0-3][0-9]|1440)m|([1-9]|1[0-9]|2[0-4])h|1d)$";
/// Names of functions.
inline constexpr std::string_view kNamePattern = "^[A-Za-z0-9_.:/-]+$";
/// JSON text of an object.
inline constexpr std::string_view kObjectTextPattern = "^[ \\t\\r\\n]*\\{";

// What stands behind "?".
extern const Field kSessionPageQuery[2];
extern const Field kSessionViewQuery[1];
extern const Field kSessionDeleteQuery[1];
extern const Field kResponseViewQuery[2];
extern const Field kItemsPageQuery[3];
extern const Field kModelPageQuery[3];

}  // namespace thaw::coalescer
