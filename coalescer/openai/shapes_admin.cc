// Bodies of sessions and of operators.

#include <string_view>

#include "coalescer/openai/call.h"
#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/shapes.h"
#include "engine/base/call_limits.h"

namespace thaw::coalescer {
namespace {

constexpr std::int64_t kMaxLabel = 200;

constexpr Field kMessageItem = object("", "", kMessageShape).by_hand();
constexpr Field kLabelText = text("", "", 0, kMaxLabel);

constexpr Field kLifeFields[] = {
    text("label", "stands in answers", 0, kMaxLabel),
    whole("ttl_seconds", "how long it is kept unused; left out: the server's, or the parent's", 1)
        .up_to(ServerBound::kSessionTtl),
};
constexpr Field kCreateFields[] = {
    text("model", "a served name; left out: the first one, or the completion's"),
    text("cache_salt", "nothing is shared across salts", 0, kMaxCallNameBytes).in_bytes(),
    boolean("prefill", "false: the KV is computed at the first turn"),
    list("messages", "what it starts with", kMessageItem),
    text("response_id", "or the chat completion that it starts from"),
    whole("choice", "of the completion", 0, kMaxInt32),
};
constexpr Field kCutFields[] = {
    whole("tokens", "this many are kept", 1, kMaxInt32),
    whole("messages", "this many are kept", 1, kMaxInt32),
};
constexpr Shape kCut = {
    "SessionCut",
    "",
    {kCutFields},
    {ShapeRule{
        ShapeRule::Kind::kExactlyOne, {"tokens", "messages"}, true, "a cut is at one of them"}}};
constexpr Field kForkFields[] = {
    whole("n", "children; left out: 1", 1).up_to(ServerBound::kChoices),
    object("cut", "where they part from it; left out: at its end", kCut),
    text("checkpoint", "they start from this one"),
    boolean("include_running", "true: with what the running turn has generated"),
    list("labels", "of the children, at most one each", kLabelText),
    whole("ttl_seconds", "left out: the parent's", 1).up_to(ServerBound::kSessionTtl),
};
constexpr Field kCheckpointFields[] = {text("name", "left out: a number", 0, kMaxLabel)};
constexpr Field kRewindFields[] = {
    text("checkpoint", "back to this one"),
    whole("tokens", "this many are kept", 1, kMaxInt32),
    whole("messages", "this many are kept", 1, kMaxInt32),
};
/// parse_session_file() holds names to this.
constexpr Field kFileFields[] = {
    text("file", "a name in the server's session directory; \"\" is the same as none")
        .like("^([A-Za-z0-9_-][A-Za-z0-9_.-]{0,127})?$"),
};
constexpr Field kImportFields[] = {map("document", "what an export answered", kAnything)};

constexpr std::string_view kNoControls = "^[^\\u0000-\\u001f\\u007f]+$";
constexpr std::string_view kNoZero = "^[^\\u0000]+$";
constexpr Field kRegisterFields[] = {
    text("name", "what requests will call the model", 1, 200).like(kNoControls).by_hand(),
    text("model", "another name of `name`", 1, 200).like(kNoControls).by_hand(),
    text("path", "the model's file or directory", 1).like(kNoZero).by_hand(),
    text("snapshot", "another name of `path`", 1).like(kNoZero).by_hand(),
};
constexpr Field kPreloadFields[] = {
    text("model", "a served name", 1).needed(),
    whole("slot_id", "of a slot; a model gets the one that is used least")
        .up_to(ServerBound::kSlot),
};

constexpr std::string_view kParts[] = {"messages", "token_ids"};
constexpr Field kPart = word("", "", kParts);

}  // namespace

constexpr Shape kSessionCreateShape = {"SessionCreateRequest",
                                       "A conversation that the server keeps.",
                                       {kCreateFields, kLifeFields, kToolFields, kTemplateFields},
                                       {ShapeRule{ShapeRule::Kind::kExactlyOne,
                                                  {"messages", "response_id"},
                                                  false,
                                                  "a session starts from one of them, a list of "
                                                  "messages or the id of a chat completion"}}};
constexpr Shape kSessionForkShape = {"SessionForkRequest", "", {kForkFields}};
constexpr Shape kSessionCheckpointShape = {"SessionCheckpointRequest", "", {kCheckpointFields}};
constexpr Shape kSessionRewindShape = {"SessionRewindRequest",
                                       "",
                                       {kRewindFields},
                                       {ShapeRule{ShapeRule::Kind::kExactlyOne,
                                                  {"checkpoint", "tokens", "messages"},
                                                  false,
                                                  "a session is taken back to one point"}}};
constexpr Shape kSessionExportShape = {"SessionExportRequest", "", {kFileFields}};
constexpr Shape kSessionImportShape = {
    "SessionImportRequest",
    "",
    {kImportFields, kFileFields, kLifeFields},
    {ShapeRule{ShapeRule::Kind::kExactlyOne,
               {"document", "file"},
               false,
               "give either `document`, what an export answered, or `file`, a name in the server's "
               "session directory"}}};
constexpr Shape kRegisterShape = {"RegisterRequest",
                                  "",
                                  {kRegisterFields},
                                  {ShapeRule{ShapeRule::Kind::kAtLeastOne,
                                             {"name", "model"},
                                             true,
                                             "it must be what requests will call the model"},
                                   ShapeRule{ShapeRule::Kind::kAtLeastOne,
                                             {"path", "snapshot"},
                                             true,
                                             "it must be the model's file or directory"}}};
constexpr Shape kPreloadShape = {"PreloadRequest", "", {kPreloadFields}};

constexpr Field kSessionPageQuery[] = {
    whole("limit", "entries of a page", 1, 1000),
    text("after", "the last session of the page before"),
};
constexpr Field kSessionViewQuery[] = {
    list("include", "what is shown besides the facts", kPart, 1)};
constexpr Field kSessionDeleteQuery[] = {boolean("recursive", "true: with all that was forked")};

}  // namespace thaw::coalescer
