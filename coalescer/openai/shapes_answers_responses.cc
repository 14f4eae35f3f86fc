// What /v1/responses answers with.

#include <string_view>

#include "coalescer/openai/answer_shapes.h"

namespace thaw::coalescer {
namespace {

using Words = std::string_view;

// --- Items

constexpr Field kTokenItem = object("", "", kTokenLogprobAnswer);
constexpr Words kOutputText[] = {"output_text"};
constexpr Field kPartFields[] = {
    word("type", "", kOutputText).needed(),
    list("annotations", "none", kAnything, 0, 0).needed(),
    list("logprobs", "empty where they were not asked for", kTokenItem).needed(),
    text("text", "").needed(),
};
constexpr Shape kPart = answer("OutputText", "", kPartFields);
constexpr Field kPartItem = object("", "", kPart);
constexpr Words kReasoningText[] = {"reasoning_text"};
constexpr Field kThoughtFields[] = {word("type", "", kReasoningText).needed(),
                                    text("text", "").needed()};
constexpr Shape kThought = answer("ReasoningText", "", kThoughtFields);
constexpr Field kThoughtItem = object("", "", kThought);

constexpr Words kItemStates[] = {"in_progress", "completed", "incomplete"};
constexpr Field kItemFields[] = {text("id", "").needed(), word("status", "", kItemStates).needed()};
constexpr Words kMessageType[] = {"message"};
constexpr Words kAssistant[] = {"assistant"};
constexpr Field kMessageFields[] = {word("type", "", kMessageType).needed(),
                                    word("role", "", kAssistant).needed(),
                                    list("content", "", kPartItem).needed()};
constexpr Shape kMessage = answer("OutputMessage", "", kItemFields, kMessageFields);
constexpr Words kReasoningType[] = {"reasoning"};
constexpr Field kReasoningFields[] = {word("type", "", kReasoningType).needed(),
                                      list("summary", "none", kAnything, 0, 0).needed(),
                                      list("content", "", kThoughtItem).needed()};
constexpr Shape kReasoning = answer("OutputReasoning", "", kItemFields, kReasoningFields);
constexpr Words kCallType[] = {"function_call"};
constexpr Field kCallFields[] = {word("type", "", kCallType).needed(), text("call_id", "").needed(),
                                 text("name", "").needed(),
                                 text("arguments", "JSON text").needed()};
constexpr Shape kCall = answer("OutputCall", "", kItemFields, kCallFields);
constexpr Field kItems[] = {object("", "", kMessage), object("", "", kReasoning),
                            object("", "", kCall)};
constexpr Field kItem = one_of("", "", kItems);

// --- The response

constexpr Field kErrorFields[] = {text("code", "").needed(), text("message", "").needed()};
constexpr Shape kError = answer("ResponseError", "", kErrorFields);
constexpr Words kReasons[] = {"max_output_tokens"};
constexpr Field kIncompleteFields[] = {word("reason", "", kReasons).needed()};
constexpr Shape kIncomplete = answer("IncompleteDetails", "", kIncompleteFields);
constexpr Field kInputDetailFields[] = {
    whole("cached_tokens", "were there, and not computed for this request").needed(),
    whole("cache_write_tokens", "were computed, and are there for the next one").needed(),
};
constexpr Shape kInputDetails = answer("InputTokensDetails", "", kInputDetailFields);
constexpr Field kOutputDetailFields[] = {whole("reasoning_tokens", "").needed()};
constexpr Shape kOutputDetails = answer("OutputTokensDetails", "", kOutputDetailFields);
constexpr Field kUsageFields[] = {
    whole("input_tokens", "").needed(),
    object("input_tokens_details", "", kInputDetails).needed(),
    whole("output_tokens", "").needed(),
    object("output_tokens_details", "", kOutputDetails).needed(),
    whole("total_tokens", "").needed(),
};
constexpr Shape kUsage = answer("ResponseUsage", "", kUsageFields);
constexpr Field kTextFields[] = {map("format", "as it was asked for", kAnything).needed(),
                                 text("verbosity", "").needed()};
constexpr Shape kTextShape = answer("ResponseText", "", kTextFields);
constexpr Field kReasonFields[] = {text("effort", "").needed().or_null(),
                                   text("summary", "").needed().or_null()};
constexpr Shape kReason = answer("ResponseReasoning", "", kReasonFields);

constexpr Words kResponseObject[] = {"response"};
constexpr Words kStates[] = {"queued",     "in_progress", "completed",
                             "incomplete", "failed",      "cancelled"};
constexpr Field kAnswerFields[] = {
    text("id", "").needed(),
    word("object", "", kResponseObject).needed(),
    whole("created_at", "seconds since the epoch").needed(),
    word("status", "", kStates).needed(),
    boolean("background", "").needed(),
    whole("completed_at", "seconds since the epoch").needed().or_null(),
    object("error", "of one that failed", kError).needed().or_null(),
    object("incomplete_details", "", kIncomplete).needed().or_null(),
    text("model", "").needed(),
    list("output", "", kItem).needed(),
    object("usage", "at the end", kUsage).needed().or_null(),
    list("prompt_token_ids", "asked for with return_token_ids", kCount),
    list("token_ids", "asked for with return_token_ids", kCount),
};
constexpr Words kTruncations[] = {"auto", "disabled"};
/// Fields of the request, repeated.
constexpr Field kEchoFields[] = {
    text("instructions", "").needed().or_null(),
    whole("max_output_tokens", "").needed().or_null(),
    whole("max_tool_calls", "").needed().or_null(),
    text("previous_response_id", "").needed().or_null(),
    boolean("store", "").needed(),
    number("temperature", "", 0, 2).needed(),
    number("top_p", "", 0, 1).needed(),
    whole("top_logprobs", "").needed(),
    boolean("parallel_tool_calls", "").needed(),
    any_value("tool_choice", "").needed(),
    list("tools", "", kAnything).needed(),
    object("text", "", kTextShape).needed(),
    object("reasoning", "", kReason).needed(),
    word("truncation", "", kTruncations).needed(),
    map("metadata", "", kText).needed(),
    text("service_tier", "").needed(),
    text("prompt_cache_key", "").needed().or_null(),
    text("prompt_cache_retention", "").needed().or_null(),
    text("safety_identifier", "").needed().or_null(),
    text("user", "").needed().or_null(),
};
constexpr Words kListObject[] = {"list"};
constexpr Field kGivenItem = map("", "", kAnything);
constexpr Field kItemsFields[] = {word("object", "", kListObject).needed(),
                                  list("data", "as they were given", kGivenItem).needed(),
                                  text("first_id", "").needed().or_null(),
                                  text("last_id", "").needed().or_null(),
                                  boolean("has_more", "").needed()};
constexpr Field kDeletedFields[] = {text("id", "").needed(),
                                    word("object", "", kResponseObject).needed(),
                                    boolean("deleted", "").needed()};

constexpr Words kInputTokensObject[] = {"response.input_tokens"};
constexpr Field kInputTokensFields[] = {
    word("object", "", kInputTokensObject).needed(),
    whole("input_tokens", "as usage of the response would say").needed()};

// --- Events

constexpr Field kNumberField[] = {whole("sequence_number", "from 0 on").needed()};
constexpr Field kIndexField[] = {whole("output_index", "").needed()};
constexpr Words kStateTypes[] = {"response.created",     "response.queued",
                                 "response.in_progress", "response.completed",
                                 "response.incomplete",  "response.failed"};
constexpr Field kStateFields[] = {word("type", "", kStateTypes).needed(),
                                  object("response", "as it stands", kResponsesAnswer).needed()};
constexpr Shape kState = answer("ResponseEvent", "", kStateFields, kNumberField);
constexpr Words kItemTypes[] = {"response.output_item.added", "response.output_item.done"};
constexpr Field kItemEventFields[] = {word("type", "", kItemTypes).needed(),
                                      one_of("item", "", kItems).needed()};
constexpr Shape kItemEvent = answer("ItemEvent", "", kItemEventFields, kNumberField, kIndexField);
/// Of what happens inside of an item.
constexpr Field kInsideFields[] = {whole("sequence_number", "").needed(),
                                   text("item_id", "").needed(),
                                   whole("output_index", "").needed()};
constexpr Field kPlaceField[] = {whole("content_index", "").needed()};
constexpr Words kPartTypes[] = {"response.content_part.added", "response.content_part.done"};
constexpr Field kEitherPart[] = {object("", "", kPart), object("", "", kThought)};
constexpr Field kPartEventFields[] = {word("type", "", kPartTypes).needed(),
                                      one_of("part", "", kEitherPart).needed()};
constexpr Shape kPartEvent = answer("PartEvent", "", kPartEventFields, kInsideFields, kPlaceField);
constexpr Words kDeltaTypes[] = {"response.output_text.delta", "response.reasoning_text.delta",
                                 "response.function_call_arguments.delta"};
constexpr Field kDeltaFields[] = {word("type", "", kDeltaTypes).needed(),
                                  text("delta", "").needed(), whole("content_index", "of text"),
                                  list("logprobs", "of output_text", kTokenItem)};
constexpr Shape kDelta = answer("TextDeltaEvent", "", kDeltaFields, kInsideFields);
constexpr Words kDoneTypes[] = {"response.output_text.done", "response.reasoning_text.done"};
constexpr Field kDoneFields[] = {word("type", "", kDoneTypes).needed(), text("text", "").needed(),
                                 list("logprobs", "of output_text", kTokenItem)};
constexpr Shape kDone = answer("TextDoneEvent", "", kDoneFields, kInsideFields, kPlaceField);
constexpr Words kCallDoneTypes[] = {"response.function_call_arguments.done"};
constexpr Field kCallDoneFields[] = {word("type", "", kCallDoneTypes).needed(),
                                     text("name", "").needed(), text("arguments", "").needed()};
constexpr Shape kCallDone = answer("CallDoneEvent", "", kCallDoneFields, kInsideFields);
constexpr Words kErrorType[] = {"error"};
constexpr Field kErrorEventFields[] = {word("type", "", kErrorType).needed(),
                                       text("code", "").needed(), text("message", "").needed(),
                                       text("param", "").needed().or_null()};
constexpr Shape kErrorEvent = answer("ErrorEvent", "", kErrorEventFields, kNumberField);
constexpr Field kEvents[] = {object("", "", kState),     object("", "", kItemEvent),
                             object("", "", kPartEvent), object("", "", kDelta),
                             object("", "", kDone),      object("", "", kCallDone),
                             object("", "", kErrorEvent)};

}  // namespace

constexpr Shape kResponsesAnswer =
    answer("Response", "", kAnswerFields, kEchoFields, std::span<const Field>(kThawAnswer));
constexpr Shape kInputTokensAnswer = answer("ResponseInputTokens", "", kInputTokensFields);
constexpr Shape kResponseDeletedAnswer = answer("ResponseDeleted", "", kDeletedFields);
constexpr Shape kResponseItemsAnswer = answer("ResponseItems", "", kItemsFields);
constexpr Field kResponsesEvent = one_of("", "", kEvents);

}  // namespace thaw::coalescer
