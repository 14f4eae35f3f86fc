// What completions, tokens and models are answered with.

#include <string_view>

#include "coalescer/openai/answer_shapes.h"

namespace thaw::coalescer {
namespace {

using Words = std::string_view;

constexpr Field kLogprob = number("logprob", "", -kNoBound, kNoBound);

// --- Usage

constexpr Field kPromptDetailFields[] = {
    whole("cached_tokens", "were there, and not computed for this request").needed(),
    whole("cache_write_tokens", "were computed, and are there for the next one"),
};
constexpr Shape kPromptDetails = answer("PromptTokensDetails", "", kPromptDetailFields);
constexpr Field kCompletionDetailFields[] = {
    whole("reasoning_tokens", "of the model's thinking").needed(),
};
constexpr Shape kCompletionDetails = answer("CompletionTokensDetails", "", kCompletionDetailFields);
constexpr Words kModes[] = {"append", "render"};
constexpr Field kSessionUsageFields[] = {
    text("id", "").needed(), word("mode", "", kModes).needed(),
    whole("common_tokens", "with the session as it was").needed(),
    whole("recomputed_tokens", "of those").needed()};
constexpr Shape kSessionUsage = answer("SessionUsage", "", kSessionUsageFields);
constexpr Field kUsageFields[] = {
    whole("prompt_tokens", "").needed(),
    whole("completion_tokens", "").needed(),
    whole("total_tokens", "").needed(),
    object("prompt_tokens_details", "", kPromptDetails).needed(),
    object("completion_tokens_details", "", kCompletionDetails).needed(),
    object("session", "of a session's turn", kSessionUsage),
};
constexpr Shape kUsage = answer("Usage", "", kUsageFields);

// --- Explanations

constexpr Field kSharedFields[] = {whole("request", "").needed(), whole("tokens", "").needed()};
constexpr Shape kShared = answer("SharedWith", "", kSharedFields);
constexpr Field kSharedItem = object("", "", kShared);
constexpr Field kPartedFields[] = {
    whole("other", "").needed(),
    whole("position", "").needed(),
    text("text_before", "").needed(),
    text("text_here", "").needed(),
    text("text_other", "").needed(),
    boolean("other_root", "").needed(),
    whole("identical_tokens_after", "").needed(),
    text("advice", "").needed(),
};
constexpr Shape kParted = answer("Parted", "Where the nearest other request parts.", kPartedFields);
constexpr Field kExplanationFields[] = {whole("request", "").needed(),
                                        whole("prompt_tokens", "").needed(),
                                        list("shared_with", "", kSharedItem).needed(),
                                        object("parted", "", kParted).needed().or_null()};
constexpr Shape kExplanation =
    answer("Explanation", "What was shared, and why not more.", kExplanationFields);
constexpr Field kExplanationItem = object("", "", kExplanation);
constexpr Field kExplanations[] = {object("", "", kExplanation),
                                   list("", "of several prompts", kExplanationItem)};

// --- Choices

constexpr Field kByte = whole("", "", 0, 255);
constexpr Field kBestFields[] = {text("token", "").needed(), kLogprob.or_null().needed(),
                                 list("bytes", "", kByte).needed()};
constexpr Shape kBest = answer("TopLogprob", "", kBestFields);
constexpr Field kBestItem = object("", "", kBest);
constexpr Field kTokenFields[] = {text("token", "").needed(), kLogprob.or_null().needed(),
                                  list("bytes", "", kByte).needed(),
                                  list("top_logprobs", "", kBestItem).needed()};
constexpr Shape kToken = answer("TokenLogprob", "", kTokenFields);
constexpr Field kTokenItem = object("", "", kToken);
constexpr Field kChatLogprobsFields[] = {list("content", "", kTokenItem).needed(),
                                         any_value("refusal", "null").needed().or_null()};
constexpr Shape kChatLogprobs = answer("ChatLogprobs", "", kChatLogprobsFields);
constexpr Field kLogprobOrNull = kLogprob.or_null();
constexpr Field kBestMap = map("", "", kLogprobOrNull).or_null();
constexpr Field kTextLogprobsFields[] = {
    list("tokens", "", kText).needed(), list("token_logprobs", "", kLogprobOrNull).needed(),
    list("top_logprobs", "", kBestMap).needed(), list("text_offset", "", kCount).needed()};
constexpr Shape kTextLogprobs =
    answer("TextLogprobs", "Lists of the same length.", kTextLogprobsFields);
constexpr Field kPromptTokenFields[] = {kLogprob.or_null().needed(), whole("rank", "", 1).needed(),
                                        text("decoded_token", "").needed()};
constexpr Shape kPromptToken = answer("PromptLogprob", "", kPromptTokenFields);
constexpr Field kPromptTokenItem = object("", "", kPromptToken);
constexpr Field kPromptTokens = map("", "token ids", kPromptTokenItem).or_null();
constexpr Field kPromptFields[] = {
    list("prompt_logprobs", "one for each token; null for the first", kPromptTokens),
    list("prompt_token_ids", "", kCount),
};

constexpr Field kFunctionFields[] = {text("name", "").needed(),
                                     text("arguments", "JSON text").needed()};
constexpr Shape kFunction = answer("CalledFunction", "", kFunctionFields);
constexpr Words kFunctionType[] = {"function"};
constexpr Field kCallFields[] = {text("id", "").needed(), word("type", "", kFunctionType).needed(),
                                 object("function", "", kFunction).needed()};
constexpr Shape kCall = answer("ToolCall", "", kCallFields);
constexpr Field kCallItem = object("", "", kCall);
constexpr Words kAssistant[] = {"assistant"};
constexpr Field kMessageFields[] = {
    word("role", "", kAssistant).needed(),
    text("content", "null where there is nothing but calls").needed().or_null(),
    any_value("refusal", "null").needed().or_null(),
    text("reasoning", ""),
    text("reasoning_content", "the same"),
    list("tool_calls", "", kCallItem, 1),
    object("function_call", "of a request with `functions`", kFunction),
};
constexpr Shape kMessage = answer("AssistantMessage", "", kMessageFields);
constexpr Words kEnds[] = {"stop", "length", "tool_calls", "function_call"};
constexpr Field kStops[] = {text("", "the stop string"), whole("", "the stop token")};
constexpr Field kChoiceFields[] = {
    whole("index", "").needed(),
    word("finish_reason", "", kEnds).needed(),
    one_of("stop_reason", "", kStops).needed().or_null(),
    list("token_ids", "", kCount),
};
constexpr Field kChatChoiceFields[] = {object("message", "", kMessage).needed(),
                                       object("logprobs", "", kChatLogprobs).needed().or_null()};
constexpr Shape kChatChoice = answer("ChatChoice", "", kChoiceFields, kChatChoiceFields);
constexpr Field kChatChoiceItem = object("", "", kChatChoice);
constexpr Field kTextChoiceFields[] = {text("text", "").needed(),
                                       object("logprobs", "", kTextLogprobs).needed().or_null()};
constexpr Shape kTextChoice =
    answer("TextChoice", "", kChoiceFields, kTextChoiceFields, kPromptFields);
constexpr Field kTextChoiceItem = object("", "", kTextChoice);

constexpr Field kHeadFields[] = {
    whole("branch", "of forks"),
    text("label", "of a branch"),
    text("id", "").needed(),
    whole("created", "seconds since the epoch").needed(),
    text("model", "").needed(),
    text("system_fingerprint", "same fingerprint, seed and fields: same answer").needed().or_null(),
    one_of("thaw", "asked for with thaw.explain", kExplanations).or_null(),
};
constexpr Field kMetadataFields[] = {
    number("latency_s", "since the request was there", 0, kNoBound).needed(),
    whole("slot_id", "of its model").needed()};
constexpr Shape kMetadata = answer("ThawMetadata", "", kMetadataFields);
constexpr Field kUsageField[] = {object("usage", "", kUsage).needed(),
                                 object("thaw_metadata", "", kMetadata)};
constexpr Words kChatObject[] = {"chat.completion"};
constexpr Field kChatFields[] = {word("object", "", kChatObject).needed(),
                                 list("choices", "", kChatChoiceItem).needed()};
constexpr Words kTextObject[] = {"text_completion"};
constexpr Field kTextFields[] = {word("object", "", kTextObject).needed(),
                                 list("choices", "", kTextChoiceItem).needed()};

// --- Chunks

constexpr Field kCallDeltaFunctionFields[] = {text("name", "once"), text("arguments", "more")};
constexpr Shape kCallDeltaFunction = answer("CalledFunctionDelta", "", kCallDeltaFunctionFields);
constexpr Field kCallDeltaFields[] = {whole("index", "").needed(), text("id", "once"),
                                      word("type", "", kFunctionType),
                                      object("function", "", kCallDeltaFunction).needed()};
constexpr Shape kCallDelta = answer("ToolCallDelta", "", kCallDeltaFields);
constexpr Field kCallDeltaItem = object("", "", kCallDelta);
constexpr Field kDeltaFields[] = {
    word("role", "in the first chunk", kAssistant),
    text("content", ""),
    text("reasoning", ""),
    text("reasoning_content", "the same"),
    list("tool_calls", "", kCallDeltaItem, 1),
    object("function_call", "", kCallDeltaFunction),
};
constexpr Shape kDelta = answer("MessageDelta", "", kDeltaFields);
constexpr Field kChunkChoiceFields[] = {
    whole("index", "").needed(),
    word("finish_reason", "in the last chunk", kEnds).needed().or_null(),
    one_of("stop_reason", "in the last chunk", kStops).or_null(),
    list("token_ids", "", kCount),
};
constexpr Field kChatChunkChoiceFields[] = {
    object("delta", "", kDelta).needed(), object("logprobs", "", kChatLogprobs).needed().or_null()};
constexpr Shape kChatChunkChoice =
    answer("ChatChunkChoice", "", kChunkChoiceFields, kChatChunkChoiceFields);
constexpr Field kChatChunkChoiceItem = object("", "", kChatChunkChoice);
constexpr Shape kTextChunkChoice =
    answer("TextChunkChoice", "", kChunkChoiceFields, kTextChoiceFields, kPromptFields);
constexpr Field kTextChunkChoiceItem = object("", "", kTextChunkChoice);
constexpr Field kChunkUsage[] = {object("usage", "in the last chunk, or in all", kUsage).or_null()};
constexpr Words kChatChunkObject[] = {"chat.completion.chunk"};
constexpr Field kChatChunkFields[] = {word("object", "", kChatChunkObject).needed(),
                                      list("choices", "", kChatChunkChoiceItem).needed()};
constexpr Field kTextChunkFields[] = {word("object", "", kTextObject).needed(),
                                      list("choices", "", kTextChunkChoiceItem).needed()};

}  // namespace

constexpr Shape kUsageAnswer = kUsage;
constexpr Shape kChatAnswer = {
    "ChatCompletion", "", {kHeadFields, kChatFields, kUsageField, kPromptFields}, {}, true};
constexpr Shape kCompletionsAnswer = {
    "TextCompletion", "", {kHeadFields, kTextFields, kUsageField}, {}, true};
constexpr Shape kChatChunk = {"ChatCompletionChunk",
                              "",
                              {kHeadFields, kChatChunkFields, kChunkUsage, kPromptFields},
                              {},
                              true};
constexpr Shape kCompletionsChunk = {
    "TextCompletionChunk", "", {kHeadFields, kTextChunkFields, kChunkUsage}, {}, true};
constexpr Shape kExplanationAnswer = kExplanation;
constexpr Shape kSessionUsageAnswer = kSessionUsage;
constexpr Shape kTokenLogprobAnswer = kToken;
constexpr Field kThawAnswer[] = {one_of("thaw", "asked for with thaw.explain", kExplanations)};
constexpr Field kChatEvent = object("", "", kChatChunk);
constexpr Field kCompletionsEvent = object("", "", kCompletionsChunk);

}  // namespace thaw::coalescer
