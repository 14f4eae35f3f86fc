// What Anthropic's Messages API is answered with.

#include <string_view>

#include "coalescer/openai/answer_shapes.h"

namespace thaw::coalescer {
namespace {

using Words = std::string_view;

// --- Errors

constexpr Field kDetailFields[] = {text("error_code", "").needed().or_null(),
                                   text("param", "the field").needed().or_null()};
constexpr Shape kDetails = answer("MessageErrorFacts", "", kDetailFields);
constexpr Field kErrorFields[] = {
    text("type", "").needed(),
    text("message", "what was wrong, which value, what would be right").needed(),
    object("details", "", kDetails),
};
constexpr Shape kError = answer("MessageErrorDetails", "", kErrorFields);
constexpr Words kErrorType[] = {"error"};
constexpr Field kErrorAnswerFields[] = {word("type", "", kErrorType).needed(),
                                        object("error", "", kError).needed(),
                                        text("request_id", "").needed().or_null()};

// --- Messages

constexpr Words kTextType[] = {"text"};
constexpr Field kTextFields[] = {word("type", "", kTextType).needed(), text("text", "").needed()};
constexpr Shape kText = answer("AnswerText", "", kTextFields);
constexpr Words kThinkingType[] = {"thinking"};
constexpr Field kThinkingFields[] = {word("type", "", kThinkingType).needed(),
                                     text("thinking", "").needed(), text("signature", "").needed()};
constexpr Shape kThinking = answer("AnswerThinking", "", kThinkingFields);
constexpr Words kUseType[] = {"tool_use"};
constexpr Field kUseFields[] = {
    word("type", "", kUseType).needed(), text("id", "").needed(), text("name", "").needed(),
    map("input", "the arguments", kAnything).needed(),
    text("partial_json", "of a call that was cut off: as much as there was")};
constexpr Shape kUse = answer("AnswerToolUse", "", kUseFields);
constexpr Field kBlocks[] = {object("", "", kText), object("", "", kThinking),
                             object("", "", kUse)};
constexpr Field kBlock = one_of("", "", kBlocks);
constexpr Words kStopReasons[] = {"end_turn", "stop_sequence", "tool_use", "max_tokens",
                                  "model_context_window_exceeded"};
constexpr Field kStopFields[] = {
    word("stop_reason", "null before the end", kStopReasons).needed().or_null(),
    text("stop_sequence", "the one that was written").needed().or_null()};
constexpr Field kCreationFields[] = {whole("ephemeral_5m_input_tokens", "").needed(),
                                     whole("ephemeral_1h_input_tokens", "").needed()};
constexpr Shape kCreation = answer("CacheCreation", "", kCreationFields);
constexpr Field kUsageFields[] = {
    whole("input_tokens", "the rest of the prompt").needed(),
    whole("cache_creation_input_tokens", "were computed, and lie before a checkpoint").needed(),
    whole("cache_read_input_tokens", "were there, and not computed for this request").needed(),
    object("cache_creation", "", kCreation).needed(),
    whole("output_tokens", "").needed(),
    object("session", "of a session's turn", kSessionUsageAnswer),
};
constexpr Shape kUsage = answer("MessageUsage", "", kUsageFields);
constexpr Field kUsageField[] = {object("usage", "", kUsage).needed()};
constexpr Words kMessageType[] = {"message"};
constexpr Words kAssistant[] = {"assistant"};
constexpr Field kMessageFields[] = {
    text("id", "").needed(),
    word("type", "", kMessageType).needed(),
    word("role", "", kAssistant).needed(),
    text("model", "").needed(),
    text("system_fingerprint", "same fingerprint, seed and fields: same answer"),
    list("content", "", kBlock).needed(),
};
constexpr Field kCountFields[] = {whole("input_tokens", "").needed()};

// --- Models

constexpr Words kModelType[] = {"model"};
constexpr Words kActive[] = {"active"};
constexpr Field kModelFields[] = {
    word("type", "", kModelType).needed(),   text("id", "").needed(),
    text("display_name", "").needed(),       text("created_at", "RFC 3339").needed(),
    word("lifecycle", "", kActive).needed(), whole("max_input_tokens", "").needed(),
    whole("max_tokens", "").needed(),
};
constexpr Field kModelItem = object("", "", kMessagesModelAnswer);
constexpr Field kModelsFields[] = {
    list("data", "", kModelItem).needed(), boolean("has_more", "").needed(),
    text("first_id", "").needed().or_null(), text("last_id", "").needed().or_null()};

// --- Events

constexpr Field kIndexField[] = {whole("index", "of the block").needed()};
constexpr Words kStartType[] = {"message_start"};
constexpr Field kStartFields[] = {word("type", "", kStartType).needed(),
                                  object("message", "", kMessagesAnswer).needed()};
constexpr Shape kStart = answer("MessageStart", "", kStartFields);
constexpr Words kPlainTypes[] = {"ping", "message_stop"};
constexpr Field kPlainFields[] = {word("type", "", kPlainTypes).needed()};
constexpr Shape kPlain = answer("MessagePing", "", kPlainFields);
constexpr Words kBlockStartType[] = {"content_block_start"};
constexpr Field kBlockStartFields[] = {word("type", "", kBlockStartType).needed(),
                                       one_of("content_block", "", kBlocks).needed()};
constexpr Shape kBlockStart = answer("BlockStart", "", kBlockStartFields, kIndexField);
constexpr Words kTextDeltaType[] = {"text_delta"};
constexpr Field kTextDeltaFields[] = {word("type", "", kTextDeltaType).needed(),
                                      text("text", "").needed()};
constexpr Shape kTextDelta = answer("TextDelta", "", kTextDeltaFields);
constexpr Words kThinkingDeltaType[] = {"thinking_delta"};
constexpr Field kThinkingDeltaFields[] = {word("type", "", kThinkingDeltaType).needed(),
                                          text("thinking", "").needed()};
constexpr Shape kThinkingDelta = answer("ThinkingDelta", "", kThinkingDeltaFields);
constexpr Words kSignatureDeltaType[] = {"signature_delta"};
constexpr Field kSignatureDeltaFields[] = {word("type", "", kSignatureDeltaType).needed(),
                                           text("signature", "").needed()};
constexpr Shape kSignatureDelta = answer("SignatureDelta", "", kSignatureDeltaFields);
constexpr Words kInputDeltaType[] = {"input_json_delta"};
constexpr Field kInputDeltaFields[] = {word("type", "", kInputDeltaType).needed(),
                                       text("partial_json", "").needed()};
constexpr Shape kInputDelta = answer("InputJsonDelta", "", kInputDeltaFields);
constexpr Field kDeltas[] = {object("", "", kTextDelta), object("", "", kThinkingDelta),
                             object("", "", kSignatureDelta), object("", "", kInputDelta)};
constexpr Words kBlockDeltaType[] = {"content_block_delta"};
constexpr Field kBlockDeltaFields[] = {word("type", "", kBlockDeltaType).needed(),
                                       one_of("delta", "", kDeltas).needed()};
constexpr Shape kBlockDelta = answer("BlockDelta", "", kBlockDeltaFields, kIndexField);
constexpr Words kBlockStopType[] = {"content_block_stop"};
constexpr Field kBlockStopFields[] = {word("type", "", kBlockStopType).needed()};
constexpr Shape kBlockStop = answer("BlockStop", "", kBlockStopFields, kIndexField);
constexpr Shape kEnd = answer("MessageEnd", "", kStopFields);
constexpr Words kDeltaType[] = {"message_delta"};
constexpr Field kDeltaFields[] = {word("type", "", kDeltaType).needed(),
                                  object("delta", "", kEnd).needed()};
constexpr Shape kMessageDelta =
    answer("MessageEndDelta", "", kDeltaFields, kUsageField, std::span<const Field>(kThawAnswer));
constexpr Field kEvents[] = {object("", "", kStart),
                             object("", "", kPlain),
                             object("", "", kBlockStart),
                             object("", "", kBlockDelta),
                             object("", "", kBlockStop),
                             object("", "", kMessageDelta),
                             object("", "", kMessagesErrorAnswer)};

}  // namespace

constexpr Shape kMessagesErrorAnswer = answer("MessageError", "", kErrorAnswerFields);
constexpr Shape kMessagesAnswer = {
    "MessagesAnswer", "", {kMessageFields, kStopFields, kUsageField, kThawAnswer}, {}, true};
constexpr Shape kCountTokensAnswer = answer("MessageTokens", "", kCountFields);
constexpr Shape kMessagesModelAnswer = answer("MessagesModel", "", kModelFields);
constexpr Shape kMessagesModelsAnswer = answer("MessagesModels", "", kModelsFields);
constexpr Field kMessagesEvent = one_of("", "", kEvents);

}  // namespace thaw::coalescer
