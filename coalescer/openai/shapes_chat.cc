// Messages, tools, and the forms of replies.

#include <string_view>

#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/shapes.h"
#include "coalescer/openai/tools.h"

namespace thaw::coalescer {
namespace {

using Words = std::string_view;

// --- Messages

constexpr Words kExplicit[] = {"explicit"};
constexpr Field kBreakpointFields[] = {word("mode", "", kExplicit)};
constexpr Words kTextTypes[] = {"text", "input_text", "output_text"};
constexpr Words kRefusalType[] = {"refusal"};
constexpr Field kTextPartFields[] = {
    word("type", "", kTextTypes).needed(), text("text", "").needed(),
    object("prompt_cache_breakpoint", "the end of what is to be kept", kBreakpointShape)};
constexpr Shape kTextPart = {"TextPart", "", {kTextPartFields}};
constexpr Field kRefusalPartFields[] = {
    word("type", "", kRefusalType).needed(), text("refusal", "").needed(),
    object("prompt_cache_breakpoint", "the end of what is to be kept", kBreakpointShape)};
constexpr Field kParts[] = {object("", "", kTextPart), object("", "", kRefusalPartShape)};
constexpr Field kPart = one_of("", "", kParts);
constexpr Field kContents[] = {text("", ""), list("", "joined by line feeds", kPart)};

constexpr Field kMessageFields[] = {
    text("role", "such as user, assistant, system, developer, tool", 1).needed(),
    one_of("content", "null counts as empty", kContents),
    any_value("name", "for the template"),
    any_value("tool_calls",
              "of an assistant; `arguments` that are JSON text reach the template "
              "as an object"),
    any_value("tool_call_id", "of a tool's result"),
    any_value("function_call", "the older name of a call"),
    any_value("reasoning", "of an assistant, for the template"),
    any_value("reasoning_content", "the same"),
};

// --- Tools

constexpr Field kFunctionFields[] = {
    text("name", "", 1, kMaxToolNameBytes).like(kNamePattern).needed(),
    text("description", ""),
    map("parameters", "JSON schema of the arguments, an object", kAnything),
    boolean("strict", "accepted; calls follow the schema anyway"),
};
constexpr Shape kFunction = {"Function", "A function that the model may call.", {kFunctionFields}};
constexpr Words kFunctionType[] = {"function"};
constexpr Field kToolMembers[] = {word("type", "", kFunctionType),
                                  object("function", "", kFunction).needed()};
constexpr Shape kTool = {"Tool", "", {kToolMembers}};
constexpr Field kToolItem = object("", "", kTool).by_hand();
constexpr Field kFunctionItem = object("", "", kFunction).by_hand();

constexpr Field kChosenName[] = {text("name", "", 1).needed()};
constexpr Shape kChosenFunction = {"ChosenFunction", "", {kChosenName}};
constexpr Field kNamedFields[] = {word("type", "", kFunctionType),
                                  object("function", "", kChosenFunction).needed()};
constexpr Shape kNamed = {"NamedTool", "One call of this function.", {kNamedFields}};
constexpr Field kNamedItem = object("", "", kNamed);
constexpr Words kAllowedModes[] = {"auto", "required"};
constexpr Field kAllowedFields[] = {word("mode", "", kAllowedModes),
                                    list("tools", "", kNamedItem, 1).needed()};
constexpr Shape kAllowedList = {"AllowedToolList", "", {kAllowedFields}};
constexpr Words kAllowedType[] = {"allowed_tools"};
constexpr Field kAllowedChoiceFields[] = {word("type", "", kAllowedType).needed(),
                                          object("allowed_tools", "", kAllowedList).needed()};
constexpr Shape kAllowedChoice = {
    "AllowedTools", "Calls of these tools only.", {kAllowedChoiceFields}};
constexpr Words kChoiceWords[] = {"auto", "none", "required", "any"};
constexpr Field kToolChoices[] = {word("", "", kChoiceWords), object("", "", kNamed),
                                  object("", "", kAllowedChoice)};
constexpr Field kFunctionChoices[] = {word("", "", kChoiceWords), object("", "", kChosenFunction)};

// --- Forms

constexpr Words kTextFormat[] = {"text"};
constexpr Words kObjectFormat[] = {"json_object"};
constexpr Words kSchemaFormat[] = {"json_schema"};
constexpr Words kTagFormat[] = {"structural_tag"};
constexpr Field kTextFormatFields[] = {word("type", "", kTextFormat).needed()};
constexpr Shape kTextFormatShape = {"TextFormat", "", {kTextFormatFields}};
constexpr Field kObjectFormatFields[] = {word("type", "", kObjectFormat).needed(),
                                         one_of("schema", "", kSchemas)};
constexpr Shape kObjectFormatShape = {"JsonObjectFormat", "", {kObjectFormatFields}};
constexpr Field kNamedSchemaFields[] = {any_value("name", "accepted, not used"),
                                        any_value("description", "accepted, not used"),
                                        boolean("strict", "accepted; replies follow it anyway"),
                                        one_of("schema", "", kSchemas).needed()};
constexpr Shape kNamedSchema = {"NamedSchema", "", {kNamedSchemaFields}};
constexpr Field kSchemaFormatFields[] = {word("type", "", kSchemaFormat).needed(),
                                         object("json_schema", "", kNamedSchema).needed()};
constexpr Shape kSchemaFormatShape = {"JsonSchemaFormat", "", {kSchemaFormatFields}};
constexpr Field kTagFormatFields[] = {
    word("type", "", kTagFormat).needed(),
    map("format", "a format of structural tags", kAnything).needed()};
constexpr Shape kTagFormatShape = {"StructuralTagFormat", "", {kTagFormatFields}};
constexpr Field kFormats[] = {object("", "", kTextFormatShape), object("", "", kObjectFormatShape),
                              object("", "", kSchemaFormatShape), object("", "", kTagFormatShape)};

constexpr Field kChoiceText = text("", "", 1);
constexpr Field kTagFields[] = {map("format", "a format of structural tags", kAnything).needed()};
constexpr Shape kTag = {"StructuralTag", "", {kTagFields}};
constexpr Field kTags[] = {object("", "", kTag),
                           text("", "JSON text of one").like(kObjectTextPattern)};
constexpr Field kStructuredFields[] = {
    one_of("json", "JSON that follows this schema", kSchemas).by_hand(),
    text("regex", "text that matches", 1).by_hand(),
    list("choice", "one of these strings", kChoiceText, 1).by_hand(),
    text("grammar", "EBNF with a rule `root`", 1).by_hand(),
    boolean("json_object", "any JSON object").by_hand(),
    one_of("structural_tag", "", kTags).by_hand(),
};
constexpr Shape kStructured = {
    "StructuredOutputs", "The form of the reply; one of these.", {kStructuredFields}};

}  // namespace

constexpr Field kSchemas[] = {map("", "", kAnything), boolean("", ""),
                              text("", "JSON text of a schema").like(kObjectTextPattern)};

constexpr Field kToolFields[] = {
    list("tools", "functions that the model may call; an empty list is the same as none", kToolItem,
         0, kMaxTools),
    one_of("tool_choice", "whether it has to", kToolChoices).by_hand(),
    boolean("parallel_tool_calls", "false: at most one call; left out: the model's habit"),
    list("functions", "the older name of tools", kFunctionItem, 0, kMaxTools),
    one_of("function_call", "the older name of tool_choice", kFunctionChoices).by_hand(),
};

constexpr Field kTemplateFields[] = {
    map("chat_template_kwargs", "variables for the template", kAnything),
    text("reasoning_effort", "reaches the template; \"none\" turns thinking off", 0, 64),
    list("documents", "the template sees them as `documents`", kAnything),
    boolean("add_generation_prompt", "false: the rendering ends with the last message"),
    boolean("continue_final_message",
            "true: the rendering ends inside the last message, which the reply goes on with"),
};

constexpr Field kFormatFields[] = {
    one_of("response_format", "the form of the reply", kFormats).by_hand(),
    object("structured_outputs", "the same in vLLM's words", kStructured).by_hand(),
    one_of("guided_json", "an older name of structured_outputs.json", kSchemas).by_hand(),
    text("guided_regex", "an older name of structured_outputs.regex", 1).by_hand(),
    list("guided_choice", "an older name of structured_outputs.choice", kChoiceText, 1).by_hand(),
    text("guided_grammar", "an older name of structured_outputs.grammar", 1).by_hand(),
};

constexpr Shape kBreakpointShape = {
    "CacheBreakpoint", "Everything up to here is to be kept.", {kBreakpointFields}};
constexpr Shape kRefusalPartShape = {"RefusalPart", "", {kRefusalPartFields}};
constexpr Shape kMessageShape = {
    "Message",
    "Other names reach the template as they are.",
    {kMessageFields},
    {ShapeRule{ShapeRule::Kind::kUnless, {"content", "role", "assistant"}, true, ""}}};

}  // namespace thaw::coalescer
