// Bodies and queries of Anthropic's Messages API.

#include <string_view>

#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/shapes.h"
#include "coalescer/openai/tools.h"

namespace thaw::coalescer {
namespace {

using Words = std::string_view;

// --- The conversation

constexpr Words kEphemeral[] = {"ephemeral"};
constexpr Field kControlFields[] = {word("type", "", kEphemeral).needed(),
                                    text("ttl", "5m where it is left out").like(kTtlPattern)};
constexpr Shape kControl = {
    "CacheControl", "The KV of everything up to here is to be kept.", {kControlFields}};
constexpr Field kMark[] = {object("cache_control", "ends what is to be kept", kControl).by_hand()};

constexpr Words kTextType[] = {"text"};
constexpr Field kTextFields[] = {word("type", "", kTextType).needed(), text("text", "").needed()};
constexpr Shape kText = {"TextBlock", "", {kTextFields, kMark}};
constexpr Words kThinkingType[] = {"thinking"};
constexpr Field kThinkingFields[] = {word("type", "", kThinkingType).needed(),
                                     text("thinking", "").needed(),
                                     any_value("signature", "not checked")};
constexpr Shape kThinking = {"ThinkingBlock", "", {kThinkingFields}};
constexpr Words kRedactedType[] = {"redacted_thinking"};
constexpr Field kRedactedFields[] = {word("type", "", kRedactedType).needed(),
                                     any_value("data", "not read")};
constexpr Shape kRedacted = {"RedactedThinkingBlock", "", {kRedactedFields}};
constexpr Words kUseType[] = {"tool_use"};
constexpr Field kUseFields[] = {word("type", "", kUseType).needed(), text("id", "").needed(),
                                text("name", "").needed(),
                                map("input", "the arguments", kAnything)};
constexpr Shape kUse = {"ToolUseBlock", "", {kUseFields, kMark}};
constexpr Field kTextItem = object("", "", kText);
constexpr Field kTexts[] = {text("", ""), list("", "joined by line feeds", kTextItem)};
constexpr Words kResultType[] = {"tool_result"};
constexpr Field kResultFields[] = {word("type", "", kResultType).needed(),
                                   text("tool_use_id", "").needed(), one_of("content", "", kTexts),
                                   boolean("is_error", "true: the tool failed")};
constexpr Shape kResult = {"ToolResultBlock", "", {kResultFields, kMark}};

constexpr Field kUserBlocks[] = {object("", "", kText), object("", "", kResult)};
constexpr Field kUserBlock = one_of("", "", kUserBlocks);
constexpr Field kUserContents[] = {text("", ""), list("", "", kUserBlock)};
constexpr Field kAssistantBlocks[] = {object("", "", kText), object("", "", kThinking),
                                      object("", "", kRedacted), object("", "", kUse)};
constexpr Field kAssistantBlock = one_of("", "", kAssistantBlocks);
constexpr Field kAssistantContents[] = {text("", ""), list("", "", kAssistantBlock)};
constexpr Words kUserRole[] = {"user"};
constexpr Words kAssistantRole[] = {"assistant"};
constexpr Words kSystemRole[] = {"system"};
constexpr Field kUserFields[] = {word("role", "", kUserRole).needed(),
                                 one_of("content", "", kUserContents).needed()};
constexpr Shape kUser = {"UserTurn", "", {kUserFields}};
constexpr Field kAssistantFields[] = {word("role", "", kAssistantRole).needed(),
                                      one_of("content", "", kAssistantContents).needed()};
constexpr Shape kAssistant = {"AssistantTurn", "", {kAssistantFields}};
constexpr Field kSystemFields[] = {word("role", "", kSystemRole).needed(),
                                   one_of("content", "", kTexts).needed()};
constexpr Shape kSystem = {"SystemTurn", "", {kSystemFields}};
constexpr Field kTurns[] = {object("", "", kUser), object("", "", kAssistant),
                            object("", "", kSystem)};
constexpr Field kTurn = one_of("", "", kTurns).by_hand();

// --- Tools, thinking, forms

constexpr Words kToolType[] = {"custom"};
constexpr Field kToolFieldsHere[] = {
    word("type", "tools that a server would run are not there", kToolType),
    text("name", "", 1, kMaxToolNameBytes).like(kNamePattern).needed(),
    text("description", ""),
    map("input_schema", "JSON schema of the arguments, an object", kAnything).needed(),
    boolean("strict", "accepted; calls follow the schema anyway"),
};
constexpr Shape kTool = {"ClientTool", "A tool that the client runs.", {kToolFieldsHere, kMark}};
constexpr Field kToolItem = object("", "", kTool).by_hand();
constexpr Words kChoiceTypes[] = {"auto", "any", "none"};
constexpr Field kChoiceFields[] = {word("type", "", kChoiceTypes).needed(),
                                   boolean("disable_parallel_tool_use", "true: at most one call")};
constexpr Shape kChoice = {"ToolChoice", "", {kChoiceFields}};
constexpr Words kNamedType[] = {"tool"};
constexpr Field kNamedFields[] = {word("type", "", kNamedType).needed(),
                                  text("name", "one of the tools", 1).needed(),
                                  boolean("disable_parallel_tool_use", "it is one call anyway")};
constexpr Shape kNamed = {"ToolChoiceTool", "One call of this tool.", {kNamedFields}};
constexpr Field kChoices[] = {object("", "", kChoice), object("", "", kNamed)};

constexpr Words kThinkingTypes[] = {"enabled", "disabled", "adaptive", "between_tools"};
constexpr Field kThinkFields[] = {
    word("type", "whether the model thinks first; adaptive leaves it to the model", kThinkingTypes)
        .needed(),
    whole("budget_tokens", "not enforced", 1, kMaxInt32),
    text("display", "omitted: the thinking is not sent")};
constexpr Shape kThink = {"ThinkingConfig", "", {kThinkFields}};
constexpr Words kSchemaType[] = {"json_schema"};
constexpr Field kFormatFieldsHere[] = {word("type", "", kSchemaType).needed(),
                                       map("schema", "of the reply", kAnything).needed()};
constexpr Shape kFormat = {"OutputFormat", "", {kFormatFieldsHere}};
constexpr Field kConfigFields[] = {
    text("effort", "reaches the template as reasoning_effort", 0, 64),
    object("format", "the form of the reply", kFormat)};
constexpr Shape kConfig = {"OutputConfig", "", {kConfigFields}};

// --- Bodies

/// What the prompt follows from.
constexpr Field kPromptFields[] = {
    list("messages", "the conversation", kTurn),
    one_of("system", "a system message before all others", kTexts).by_hand(),
    list("tools", "what the model may call", kToolItem, 0, kMaxTools),
    one_of("tool_choice", "whether it has to", kChoices).by_hand(),
    object("thinking", "", kThink),
    object("output_config", "", kConfig),
    object("output_format", "the form of the reply", kFormat),
    object("cache_control", "the end of the request ends what is to be kept", kControl).by_hand(),
};

constexpr Field kStopText = text("", "", 1, 1024);
constexpr std::string_view kElsewhere = "a message has no place for it; see /v1/chat/completions";
constexpr Field refused(std::string_view name) {
  return {.name = name, .kind = ValueKind::kBoolean, .about = kElsewhere, .most = 0};
}
constexpr Field kMessagesFields[] = {
    whole("max_tokens", "most tokens of the answer; 0 fills the cache", 0, kMaxInt32).needed(),
    whole("max_completion_tokens", "the same; wins where both are sent", 0, kMaxInt32),
    list("stop_sequences", "text that ends the answer and is not part of it", kStopText, 0, 64),
    boolean("include_reasoning", "false: the thinking is not sent"),
    text("session_id", "the turn of a session; the messages are then those to add"),
    boolean("append", "true: they are written behind the session's tokens as they are"),
    boolean("replace", "true: they are the whole conversation"),
    whole("n", kElsewhere, 1, 1),
    whole("best_of", kElsewhere, 1, 1),
    refused("logprobs"),
    whole("top_logprobs", kElsewhere, 0, 0),
    nothing("prompt_logprobs", kElsewhere),
    refused("echo"),
    nothing("container", "leave it out"),
    list("mcp_servers", "leave it out", kAnything, 0, 0),
};
constexpr Field kCountFields[] = {
    text("model", "whose tokens they are"),
    list("messages", "the conversation", kTurn, 1).needed(),
};

}  // namespace

constexpr Shape kMessagesShape = {
    "MessagesRequest",
    "A conversation to be gone on with, in Anthropic's words.",
    {kMessagesFields, kPromptFields, kHeadFields, kSamplingFields, kOtherFields,
     std::span<const Field>(kTemplateFields).first(2), kFormatFields},
    {ShapeRule{ShapeRule::Kind::kAtLeastOne,
               {"messages", "session_id"},
               false,
               "`messages` must be a list of at least one message"}}};
constexpr Shape kCountTokensShape = {
    "CountTokensRequest",
    "",
    {kCountFields, kPromptFields, std::span<const Field>(kTemplateFields).first(2)}};

constexpr Field kModelPageQuery[] = {
    whole("limit", "in Anthropic's form: models of a page", 1, 1000),
    text("after_id", "in Anthropic's form: the last model of the page before"),
    text("before_id", "in Anthropic's form: the first model of the page behind"),
};

}  // namespace thaw::coalescer
