// Bodies and queries of /v1/responses.

#include <string_view>

#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/parse_sampling.h"
#include "coalescer/openai/responses_call.h"
#include "coalescer/openai/shapes.h"
#include "coalescer/openai/tools.h"

namespace thaw::coalescer {
namespace {

using Words = std::string_view;

// --- Items

constexpr Words kTextTypes[] = {"input_text", "output_text", "text", "reasoning_text",
                                "summary_text"};
constexpr Field kTextPartFields[] = {
    word("type", "", kTextTypes).needed(), text("text", "").needed(),
    object("prompt_cache_breakpoint", "the end of what is to be kept", kBreakpointShape)};
constexpr Shape kTextPart = {"ResponsesTextPart", "", {kTextPartFields}};
constexpr Field kParts[] = {object("", "", kTextPart), object("", "", kRefusalPartShape)};
constexpr Field kPart = one_of("", "", kParts);
constexpr Field kContents[] = {text("", ""), list("", "joined by line feeds", kPart)};

constexpr Words kMessageType[] = {"message"};
constexpr Words kRoles[] = {"user", "assistant", "system", "developer"};
constexpr Field kIdField[] = {text("id", "as the client likes it")};
constexpr Field kMessageFields[] = {word("type", "", kMessageType),
                                    word("role", "developer counts as system", kRoles).needed(),
                                    one_of("content", "", kContents)};
constexpr Shape kMessage = {
    "ResponsesMessage",
    "",
    {kIdField, kMessageFields},
    {ShapeRule{ShapeRule::Kind::kUnless, {"content", "role", "assistant"}, true, ""}}};
constexpr Words kCallType[] = {"function_call"};
constexpr Field kCallFields[] = {word("type", "", kCallType).needed(),
                                 text("call_id", "", 1).needed(), text("name", "", 1).needed(),
                                 text("arguments", "JSON text")};
constexpr Shape kCall = {"ResponsesCall", "", {kIdField, kCallFields}};
constexpr Words kOutputType[] = {"function_call_output"};
constexpr Field kOutputFields[] = {word("type", "", kOutputType).needed(),
                                   text("call_id", "the call that it answers", 1).needed(),
                                   one_of("output", "what the call gave", kContents).needed()};
constexpr Shape kOutput = {"ResponsesCallOutput", "", {kIdField, kOutputFields}};
constexpr Words kReasoningType[] = {"reasoning"};
constexpr Field kReasoningFields[] = {
    word("type", "", kReasoningType).needed(), one_of("content", "thinking to be read", kContents),
    any_value("summary", "accepted; it says nothing to the model")};
constexpr Shape kReasoning = {"ResponsesReasoning", "", {kIdField, kReasoningFields}};
constexpr Words kReferenceType[] = {"item_reference"};
constexpr Field kReferenceFields[] = {word("type", "", kReferenceType).needed(),
                                      text("id", "of an item of a stored response", 1).needed()};
constexpr Shape kReference = {"ResponsesReference", "", {kReferenceFields}};
constexpr Field kItems[] = {object("", "", kMessage), object("", "", kCall),
                            object("", "", kOutput), object("", "", kReasoning),
                            object("", "", kReference)};
constexpr Field kItem = one_of("", "", kItems);
constexpr Field kInputs[] = {text("", "a user's message"), list("", "the conversation's items",
                                                                kItem, 0, std::int64_t{kMaxItems})};

// --- Tools

constexpr Words kFunctionType[] = {"function"};
constexpr Field kToolMembers[] = {
    word("type", "tools that a server would run are not there", kFunctionType),
    text("name", "", 1, kMaxToolNameBytes).like(kNamePattern).needed(),
    text("description", ""),
    map("parameters", "JSON schema of the arguments, an object", kAnything),
    boolean("strict", "accepted; calls follow the schema anyway"),
};
constexpr Shape kTool = {"ResponsesTool", "A function that the model may call.", {kToolMembers}};
constexpr Field kToolItem = object("", "", kTool).by_hand();
constexpr Field kNamedFields[] = {word("type", "", kFunctionType), text("name", "", 1).needed()};
constexpr Shape kNamed = {"ResponsesNamedTool", "", {kNamedFields}};
constexpr Field kNamedItem = object("", "", kNamed);
constexpr Words kAllowedType[] = {"allowed_tools"};
constexpr Words kAllowedModes[] = {"auto", "required"};
constexpr Field kAllowedFields[] = {word("type", "", kAllowedType).needed(),
                                    word("mode", "", kAllowedModes),
                                    list("tools", "", kNamedItem, 1).needed()};
constexpr Shape kAllowed = {
    "ResponsesAllowedTools", "Calls of these tools only.", {kAllowedFields}};
constexpr Words kChoiceWords[] = {"auto", "none", "required", "any"};
constexpr Field kToolChoices[] = {word("", "", kChoiceWords), object("", "", kNamed),
                                  object("", "", kAllowed)};

// --- The rest

constexpr Words kTextFormat[] = {"text"};
constexpr Words kObjectFormat[] = {"json_object"};
constexpr Words kSchemaFormat[] = {"json_schema"};
constexpr Field kTextFormatFields[] = {word("type", "", kTextFormat)};
constexpr Shape kTextFormatShape = {"ResponsesPlainFormat", "", {kTextFormatFields}};
constexpr Field kObjectFormatFields[] = {word("type", "", kObjectFormat).needed()};
constexpr Shape kObjectFormatShape = {"ResponsesObjectFormat", "", {kObjectFormatFields}};
constexpr Field kSchemaFormatFields[] = {word("type", "", kSchemaFormat).needed(),
                                         any_value("name", "accepted, not used"),
                                         any_value("description", "accepted, not used"),
                                         boolean("strict", "accepted; replies follow it anyway"),
                                         one_of("schema", "", kSchemas).needed()};
constexpr Shape kSchemaFormatShape = {"ResponsesSchemaFormat", "", {kSchemaFormatFields}};
constexpr Field kFormats[] = {object("", "", kTextFormatShape), object("", "", kObjectFormatShape),
                              object("", "", kSchemaFormatShape)};
constexpr Words kVerbosities[] = {"low", "medium", "high"};
constexpr Field kTextFields[] = {one_of("format", "the form of the text", kFormats).by_hand(),
                                 word("verbosity", "accepted, not used", kVerbosities)};
constexpr Shape kText = {"ResponsesText", "", {kTextFields}};
constexpr Words kSummaries[] = {"auto", "concise", "detailed"};
constexpr Field kEffortFields[] = {
    text("effort", "reaches the template; \"none\" turns thinking off", 0, 64),
    word("summary", "accepted; thinking is given as it is", kSummaries),
    word("generate_summary", "the older name of summary", kSummaries)};
constexpr Shape kEffort = {"ResponsesEffort", "", {kEffortFields}};

constexpr Words kIncludes[] = {kIncludeLogprobs,
                               "reasoning.encrypted_content",
                               "file_search_call.results",
                               "web_search_call.results",
                               "web_search_call.action.sources",
                               "message.input_image.image_url",
                               "computer_call_output.output.image_url",
                               "code_interpreter_call.outputs"};
constexpr Field kInclude = word("", "", kIncludes);
constexpr Words kTruncations[] = {"auto", "disabled"};
constexpr Field kMetadataText = text("", "", 0, 512);

constexpr Field kResponsesFields[] = {
    one_of("input", "what the model is asked", kInputs).by_hand(),
    text("instructions", "a system message before everything else, of this response alone"),
    text("previous_response_id", "goes on with that response"),
    whole("max_output_tokens", "left out: what fits into the context", 1, kMaxInt32),
    whole("max_tokens", "the same; max_output_tokens wins", 1, kMaxInt32),
    whole("max_completion_tokens", "the same; max_output_tokens wins", 1, kMaxInt32),
    whole("max_tool_calls", "accepted, not used", 1, kMaxInt32),
    whole("n", "a response has one output; several of one beginning go by /v1/forks", 1, 1),
    whole("best_of", "as n", 1, 1),
    list("include", "the first word asks for logprobs, the others are accepted", kInclude),
    whole("top_logprobs", "log-probabilities, with that many of the best others", 0,
          kMaxTopLogprobs),
    boolean("store", "false: it is not kept"),
    boolean("background", "true: answered at once, and runs without its client"),
    word("truncation", "auto: the oldest messages are left out until the rest fits", kTruncations),
    map("metadata", "repeated in the answer", kMetadataText, 16).like("^[\\s\\S]{0,64}$"),
    object("text", "", kText),
    object("reasoning", "", kEffort),
    text("user", "repeated, not used"),
    text("safety_identifier", "repeated, not used"),
    boolean("include_reasoning", "false: the thinking is not sent"),
    list("tools", "functions that the model may call", kToolItem, 0, kMaxTools),
    one_of("tool_choice", "whether it has to", kToolChoices).by_hand(),
    nothing("conversation", "`previous_response_id` goes on with a response"),
    nothing("prompt", "no prompt templates are kept here; leave it out"),
    nothing("context_management", "leave it out, or see `truncation`"),
    nothing("moderation", "leave it out"),
    nothing("messages", "it belongs to /v1/chat/completions; here it is `input`"),
    nothing("session_id", "it goes with /v1/chat/completions; here it is `previous_response_id`"),
    nothing("truncate_prompt_tokens", "see `truncation`"),
    nothing("prompt_logprobs", "/v1/chat/completions has it"),
};

constexpr Words kOrders[] = {"asc", "desc"};

}  // namespace

constexpr Shape kResponsesShape = {"ResponsesRequest",
                                   "What a response is made of.",
                                   {kResponsesFields, kHeadFields, kSamplingFields, kOtherFields,
                                    std::span<const Field>(kToolFields).subspan(2, 1),
                                    std::span<const Field>(kTemplateFields).first(1),
                                    std::span<const Field>(kFormatFields).subspan(1)},
                                   {ShapeRule{ShapeRule::Kind::kAtLeastOne,
                                              {"input", "previous_response_id"},
                                              true,
                                              "`input` must be a string or a list of items"}}};

constexpr Field kResponseViewQuery[] = {
    boolean("stream", "true: the events of a background response"),
    whole("starting_after", "the number of the last event that the client has", 0, kMaxInt32),
};
constexpr Field kItemsPageQuery[] = {
    whole("limit", "items of a page", 1, 100),
    word("order", "desc: the newest first", kOrders),
    text("after", "the last item of the page before"),
};

}  // namespace thaw::coalescer
