// What errors, forks, sessions and operators' calls are answered with.

#include <string_view>

#include "coalescer/openai/answer_shapes.h"

namespace thaw::coalescer {
namespace {

using Words = std::string_view;

constexpr Field kTextOrNull = kText.or_null();

constexpr Field seconds(std::string_view name, std::string_view about) {
  return number(name, about, 0, kNoBound);
}
constexpr Field count(std::string_view name, std::string_view about = "") {
  return whole(name, about).needed();
}

// --- Errors

constexpr Field kErrorFields[] = {
    text("message", "what was wrong, which value, what would be right").needed(),
    text("type", "").needed(),
    text("param", "the field").needed().or_null(),
    text("code", "").needed().or_null(),
};
constexpr Shape kError = answer("ErrorDetails", "", kErrorFields);
constexpr Field kErrorField[] = {object("error", "", kError).needed()};

// --- Forks

constexpr Field kFailedFields[] = {whole("branch", "").needed(), text("label", ""),
                                   object("error", "", kError).needed()};
constexpr Shape kFailed = answer("FailedBranch", "", kFailedFields);
constexpr Field kBranches[] = {object("", "", kChatAnswer), object("", "", kCompletionsAnswer),
                               object("", "", kFailed)};
constexpr Field kBranch = one_of("", "", kBranches);
constexpr Words kForksObject[] = {"forks"};
constexpr Field kForksFields[] = {
    text("id", "").needed(),
    word("object", "", kForksObject).needed(),
    count("created", "seconds since the epoch"),
    text("model", "").needed(),
    list("data", "what each branch would have been answered alone", kBranch).needed(),
    object("usage", "their sum", kUsageAnswer).needed(),
};
constexpr Words kForksUsageObject[] = {"forks.usage"};
constexpr Field kForksUsageFields[] = {
    text("id", "").needed(),
    word("object", "", kForksUsageObject).needed(),
    count("created", "seconds since the epoch"),
    text("model", "").needed(),
    Field{.name = "choices", .kind = ValueKind::kList, .most = 0, .item = &kAnything}.needed(),
    object("usage", "the branches' sum", kUsageAnswer).needed(),
};
constexpr Shape kForksUsage = answer("ForksUsage", "", kForksUsageFields);
constexpr Field kForksEvents[] = {object("", "", kChatChunk), object("", "", kCompletionsChunk),
                                  object("", "", kForksUsage), object("", "", kFailed)};
constexpr Field kExplanationItem = object("", "", kExplanationAnswer);
constexpr Field kWindowFields[] = {count("window"),
                                   list("requests", "", kExplanationItem).needed()};
constexpr Shape kWindow = answer("Window", "", kWindowFields);
constexpr Field kWindowItem = object("", "", kWindow);
constexpr Field kWindowsFields[] = {list("windows", "newest first", kWindowItem).needed()};

// --- Models and tokens

constexpr Words kListObject[] = {"list"};
constexpr Words kModelObject[] = {"model"};
constexpr Words kOwner[] = {"thaw"};
constexpr Field kSamplingFields[] = {
    number("temperature", "", 0, kNoBound).needed(), number("top_p", "", 0, 1).needed(),
    whole("top_k", "").needed(), number("min_p", "", 0, 1).needed(),
    number("repetition_penalty", "", 0, kNoBound).needed()};
constexpr Shape kSampling = answer("SamplingDefaults", "", kSamplingFields);
constexpr Field kModelFields[] = {
    text("id", "").needed(),
    word("object", "", kModelObject).needed(),
    count("created", "seconds since the epoch"),
    word("owned_by", "", kOwner).needed(),
    count("max_model_len", "tokens of prompt and output together, as served"),
    text("family", "").needed(),
    count("num_parameters"),
    text("dtype", "of most of the stored weights").needed(),
    text("quantization", "of what is computed with").needed().or_null(),
    count("context_length", "tokens that the model was made for"),
    object("default_sampling_params", "", kSampling).needed(),
};
constexpr Field kModelItem = object("", "", kModelAnswer);
constexpr Field kModelsFields[] = {word("object", "", kListObject).needed(),
                                   list("data", "", kModelItem).needed()};
constexpr Field kTokenizeFields[] = {
    count("count"), count("max_model_len"), list("tokens", "", kCount).needed(),
    list("token_strs", "asked for with return_token_strs", kText).needed().or_null()};
constexpr Field kDetokenizeFields[] = {text("prompt", "").needed()};

// --- Sessions

constexpr Field kCheckpointFields[] = {text("name", "").needed(), count("tokens"),
                                       count("messages"),
                                       count("created_at", "seconds since the epoch")};
constexpr Shape kCheckpoint = answer("Checkpoint", "", kCheckpointFields);
constexpr Field kCheckpointItem = object("", "", kCheckpoint);
constexpr Field kKvFields[] = {boolean("kept", "").needed(), count("tokens"), count("bytes"),
                               boolean("given_up", "").needed(), text("error", "")};
constexpr Shape kKv = answer("SessionKv", "What of its KV is kept for it.", kKvFields);
constexpr Field kSessionDetails[] = {
    count("cached_tokens", "were there, and not computed for this request")};
constexpr Shape kPrefillDetails = answer("PrefillDetails", "", kSessionDetails);
constexpr Field kPrefillFields[] = {count("prompt_tokens"),
                                    object("prompt_tokens_details", "", kPrefillDetails).needed()};
constexpr Shape kPrefill = answer("PrefillUsage", "", kPrefillFields);
constexpr Words kSessionObject[] = {"session"};
constexpr Field kSessionFields[] = {
    text("id", "").needed(),
    word("object", "", kSessionObject).needed(),
    count("created_at", "seconds since the epoch"),
    count("expires_at", "seconds since the epoch"),
    count("ttl_seconds"),
    text("model", "").needed(),
    text("label", "").needed().or_null(),
    text("cache_salt", "").needed().or_null(),
    text("parent", "").needed().or_null(),
    whole("fork_tokens", "shared with the parent").needed().or_null(),
    list("children", "", kText).needed(),
    count("tokens"),
    count("num_messages"),
    count("turns"),
    boolean("running", "").needed(),
    object("kv", "", kKv).needed(),
    list("checkpoints", "", kCheckpointItem).needed(),
    object("usage", "of the KV that was computed before the answer", kPrefill),
    list("messages", "asked for with include", kAnything),
    list("tools", "with the messages", kAnything),
    list("token_ids", "asked for with include", kCount),
};
constexpr Field kSessionItem = object("", "", kSessionAnswer);
constexpr Field kSessionsFields[] = {word("object", "", kListObject).needed(),
                                     list("data", "", kSessionItem).needed(),
                                     boolean("has_more", "").needed()};
constexpr Field kSavedFields[] = {count("kv_tokens"), count("kv_bytes"),
                                  text("kv_error", "").needed().or_null()};
constexpr Shape kSaved = answer("SavedSession", "", kSavedFields);
constexpr Words kCheckpointObject[] = {"session.checkpoint"};
constexpr Field kCheckpointMoreFields[] = {
    word("object", "", kCheckpointObject).needed(), text("session", "").needed(),
    object("saved", "null: the server has no session directory", kSaved).needed().or_null()};
constexpr Words kDeletedObject[] = {"session.deleted"};
constexpr Field kDeletedFields[] = {text("id", "").needed(),
                                    word("object", "", kDeletedObject).needed(),
                                    boolean("deleted", "").needed(), count("count")};
constexpr Words kExportObject[] = {"session.export"};
constexpr Field kExportFields[] = {
    word("object", "", kExportObject).needed(),
    text("id", "").needed(),
    map("document", "everything but the KV; for an import", kAnything),
    text("file", "where it was asked for"),
    whole("kv_tokens", "in the file"),
    whole("kv_bytes", "in the file"),
    text("kv_error", "why the file has none").or_null(),
};
constexpr Words kTreeObject[] = {"session.tree"};
constexpr Field kNodeFields[] = {
    text("id", "").needed(),
    text("label", "").needed().or_null(),
    text("parent", "").needed().or_null(),
    whole("fork_tokens", "").needed().or_null(),
    count("tokens"),
    count("num_messages"),
    count("shared_tokens"),
    count("shared_blocks"),
    count("turns"),
    boolean("running", "").needed(),
    object("kv", "", kKv).needed(),
    boolean("current", "the one that was asked for").needed(),
    list("checkpoints", "", kCheckpointItem).needed(),
    list("children", "", kText).needed(),
};
constexpr Shape kNode = answer("SessionNode", "", kNodeFields);
constexpr Field kNodeItem = object("", "", kNode);
constexpr Field kTreeFields[] = {word("object", "", kTreeObject).needed(),
                                 text("root", "").needed(), text("current", "").needed(),
                                 list("nodes", "parents before children", kNodeItem).needed()};

// --- Operators

constexpr Words kSlotStates[] = {"empty", "swapping", "serving", "closing"};
constexpr Field kSlotFields[] = {
    count("id"),
    text("model", "").needed().or_null(),
    boolean("busy", "").needed(),
    word("state", "", kSlotStates).needed(),
    count("running"),
    count("swaps"),
    seconds("last_swap_seconds", "").needed(),
    seconds("busy_seconds", "").needed(),
    seconds("utilisation", "busy seconds of each second").needed(),
};
constexpr Shape kSlot = answer("Slot", "", kSlotFields);
constexpr Field kSlotItem = object("", "", kSlot);
constexpr Field kModelStatusFields[] = {
    text("model", "").needed(),
    whole("slot", "").needed().or_null(),
    count("weight_bytes"),
    count("waiting"),
    count("requests"),
    count("loads"),
    seconds("load_seconds", "").needed(),
    count("load_failures"),
    text("failure", "why it cannot be loaded").needed().or_null(),
};
constexpr Shape kModelStatus = answer("ModelStatus", "", kModelStatusFields);
constexpr Field kModelStatusItem = object("", "", kModelStatus);
constexpr Field kWorkerFields[] = {
    count("worker"),
    text("model", "").needed(),
    whole("pid", "", -1).needed(),
    boolean("ready", "").needed(),
    count("generation"),
    count("adopted_blocks"),
    text("system_fingerprint", "").needed(),
    map("stats", "counters by name", kCount).needed(),
};
constexpr Shape kWorker = answer("Worker", "", kWorkerFields);
constexpr Field kWorkerItem = object("", "", kWorker);
constexpr Field kPoolFields[] = {
    boolean("ready", "").needed(),
    boolean("draining", "").needed(),
    text("base_model", "").needed(),
    count("tensor_parallel_size"),
    count("pool_size"),
    map("registered_models", "paths; null for who is no operator", kTextOrNull).needed(),
    list("slots", "", kSlotItem).needed(),
    list("models", "", kModelStatusItem).needed(),
    seconds("uptime_seconds", "").needed(),
    count("requests_suspended"),
    count("requests_running"),
    count("requests_retried"),
    count("requests_resumed"),
    count("worker_deaths"),
    count("arena_bytes"),
    count("arena_used_bytes"),
    count("snapshots"),
    list("workers", "", kWorkerItem).needed(),
};
constexpr Field kSnapshotsFields[] = {map("snapshots", "names to paths", kText).needed()};
constexpr Words kSnapshotStates[] = {"registered", "unregistered", "unknown"};
constexpr Field kSnapshotFields[] = {word("status", "", kSnapshotStates).needed(),
                                     text("model", "").needed(), text("snapshot", "its path")};
constexpr Words kPreloaded[] = {"preloaded"};
constexpr Field kPreloadFields[] = {
    word("status", "", kPreloaded).needed(), text("model", "").needed(), count("slot_id"),
    seconds("throughput_gb_s", "0: it was there").needed(), seconds("elapsed_s", "").needed()};
constexpr Words kHealthStates[] = {"ok", "loading", "draining"};
constexpr Field kHealthFields[] = {word("status", "", kHealthStates).needed(),
                                   whole("pool_size", "of ok"), whole("idle_slots", "of ok"),
                                   whole("registered_models", "of ok")};
constexpr Field kVersionFields[] = {text("version", "").needed()};

}  // namespace

constexpr Shape kErrorAnswer = answer("Error", "", kErrorField);
constexpr Field kForksEvent = one_of("", "", kForksEvents);
constexpr Shape kForksAnswer = answer("Forks", "", kForksFields);
constexpr Shape kForksRecentAnswer = answer("RecentForks", "", kWindowsFields);
constexpr Shape kModelAnswer = answer("Model", "", kModelFields);
constexpr Shape kModelsAnswer = answer("Models", "", kModelsFields);
constexpr Shape kTokenizeAnswer = answer("Tokens", "", kTokenizeFields);
constexpr Shape kDetokenizeAnswer = answer("Detokenized", "", kDetokenizeFields);
constexpr Shape kSessionAnswer = answer("Session", "", kSessionFields);
constexpr Shape kSessionsAnswer = answer("Sessions", "", kSessionsFields);
constexpr Shape kSessionCheckpointAnswer =
    answer("SessionCheckpoint", "", kCheckpointFields, kCheckpointMoreFields);
constexpr Shape kSessionDeletedAnswer = answer("SessionDeleted", "", kDeletedFields);
constexpr Shape kSessionExportAnswer = answer("SessionExport", "", kExportFields);
constexpr Shape kSessionTreeAnswer = answer("SessionTree", "", kTreeFields);
constexpr Shape kPoolAnswer = answer("Pool", "", kPoolFields);
constexpr Shape kSnapshotsAnswer = answer("Snapshots", "", kSnapshotsFields);
constexpr Shape kSnapshotAnswer = answer("Snapshot", "", kSnapshotFields);
constexpr Shape kPreloadAnswer = answer("Preloaded", "", kPreloadFields);
constexpr Shape kHealthAnswer = answer("Health", "", kHealthFields);
constexpr Shape kVersionAnswer = answer("Version", "", kVersionFields);

}  // namespace thaw::coalescer
