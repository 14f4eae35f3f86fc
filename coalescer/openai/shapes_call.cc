// Bodies that make a model speak, and those of tokens.

#include <string_view>

#include "coalescer/openai/call.h"
#include "coalescer/openai/json_fields.h"
#include "coalescer/openai/parse_sampling.h"
#include "coalescer/openai/shapes.h"
#include "engine/base/call_limits.h"

namespace thaw::coalescer {
namespace {

using Words = std::string_view;

constexpr std::int64_t kMaxStopLength = 1024;

constexpr Field kTokenId = whole("", "").up_to(ServerBound::kTokenId);
constexpr Field kStopText = text("", "", 1, kMaxStopLength);
constexpr Field kStops[] = {kStopText, list("", "", kStopText, 0, 64)};
constexpr Field kBias = number("", "", -100, 100);
constexpr Field kCut[] = {whole("", "as many as fit beside the reply", -1, -1),
                          whole("", "", 1, kMaxInt32)};

constexpr Words kCacheModes[] = {"implicit", "explicit"};
constexpr Field kCacheOptionFields[] = {
    word("mode", "explicit: only what breakpoints end is kept", kCacheModes),
    boolean("prewarm", "true: the prompt is computed and nothing is generated"),
    text("ttl", "how long it is kept: 90s, 30m, 12h").like(kTtlPattern).by_hand(),
};
constexpr Shape kCacheOptions = {"PromptCacheOptions", "", {kCacheOptionFields}};
constexpr Words kRetentions[] = {"in_memory", "in-memory", "24h"};
constexpr Words kToolAutos[] = {"lazy", "eager"};
constexpr Field kThawFields[] = {
    boolean("explain", "true: the answer says what was shared and why not more"),
    whole("worker", "run on this worker only", 0, kMaxInt32),
    word("tool_auto", "what tool_choice auto means", kToolAutos),
};
constexpr Shape kThaw = {"ThawOptions", "What thaw adds.", {kThawFields}};

constexpr Field kStreamOptionFields[] = {
    boolean("include_usage", "true: a last chunk with usage"),
    boolean("continuous_usage_stats", "true: every chunk has the usage up to there"),
};
constexpr Shape kStreamOptions = {"StreamOptions", "", {kStreamOptionFields}};
}  // namespace

constexpr Field kSamplingFields[] = {
    number("temperature", "0 is greedy; left out: the model's, else 1", 0, 2),
    number("top_p", "left out: the model's, else 1", 0, 1).above(),
    whole("top_k", "0 or -1 is off", -1, kMaxInt32),
    number("min_p", "", 0, 1),
    number("repetition_penalty", "left out: the model's, else 1", 0.01, 10),
    number("presence_penalty", "", -2, 2),
    number("frequency_penalty", "", -2, 2),
    whole("min_tokens", "nothing ends the answer before that many", 0, kMaxInt32),
    boolean("ignore_eos", "true: the model's end token does not end the answer"),
    whole("seed", "the same seed gives the same answer", kMinInt64, kMaxInt64),
    whole("n", "replies", 1).up_to(ServerBound::kChoices),
    one_of("stop", "text that ends the answer and is not part of it", kStops),
    list("stop_token_ids", "besides the model's own end", kTokenId),
    list("allowed_token_ids", "no other token is generated", kTokenId, 1),
    map("logit_bias", "token ids, written as strings, to what is added", kBias, 1024)
        .like("^[0-9]{1,9}$"),
    list("bad_words",
         "strings that are not generated, neither at the start of a text nor behind a "
         "space",
         kStopText, 0, 1024),
    boolean("include_stop_str_in_output", "true: what stops the answer ends its text"),
    boolean("skip_special_tokens", "false: special tokens show in the text"),
    boolean("echo", "true: the prompt, or a chat's last message, stands before the text"),
    boolean("return_token_ids", "true: token_ids in each choice, and prompt_token_ids"),
    boolean("return_tokens_as_token_ids", "true: log-probabilities show \"token_id:17\""),
    whole("prompt_logprobs", "of the prompt's own tokens, with that many of the best", 0,
          kMaxTopLogprobs),
    one_of("truncate_prompt_tokens", "how many at the prompt's end are read", kCut),
    text("cache_salt", "nothing is shared across salts", 0, kMaxCallNameBytes).in_bytes(),
    whole("priority", "lower runs first", -kMaxInt32, kMaxInt32),
};

constexpr Field kOtherFields[] = {
    text("prompt_cache_key", "a name for prompts that grow", 0, 512),
    object("prompt_cache_options", "what of the prompt's KV is kept", kCacheOptions),
    word("prompt_cache_retention", "24h is a ttl of that", kRetentions),
    object("thaw", "", kThaw),
    any_value("user", "accepted, not used"),
    any_value("metadata", "accepted, not used"),
    any_value("store", "accepted, not used"),
    any_value("service_tier", "accepted, not used"),
    any_value("safety_identifier", "accepted, not used"),
    any_value("verbosity", "accepted, not used"),
    any_value("spaces_between_special_tokens", "accepted, not used"),
    Field{.name = "use_beam_search",
          .kind = ValueKind::kBoolean,
          .about = "best_of samples several replies",
          .most = 0},
    nothing("logits_processors", "leave it out"),
    nothing("prompt_embeds", "leave it out"),
    nothing("chat_template", "leave it out"),
};

constexpr Field kHeadFields[] = {
    text("model", "a served name; left out: the first one"),
    boolean("stream", "true: server-sent events"),
    object("stream_options", "", kStreamOptions),
};

namespace {

constexpr Field kMessageItem = object("", "", kMessageShape).by_hand();
constexpr Field kChatFields[] = {
    list("messages", "the conversation", kMessageItem),
    whole("max_tokens", "left out: what fits into the context", 1, kMaxInt32),
    whole("max_completion_tokens", "the same; wins where both are sent", 1, kMaxInt32),
    whole("best_of", "of completions only", 1, 1).by_hand(),
    boolean("logprobs", "true: of the tokens of the reply"),
    whole("top_logprobs", "and of that many of the best others", 0, kMaxTopLogprobs),
    boolean("include_reasoning", "false: the thinking is not sent"),
    text("session_id", "the turn of a session; the messages are then those to add"),
    boolean("append", "true: they are written behind the session's tokens as they are"),
    boolean("replace", "true: they are the whole conversation"),
};

constexpr Field kIds = list("", "token ids", kTokenId);
constexpr Field kPromptItems[] = {text("", ""), kIds};
constexpr Field kPromptItem = one_of("", "", kPromptItems);
constexpr Field kPrompts[] = {text("", ""), list("", "token ids", kTokenId, 1),
                              list("", "several prompts, each text or token ids", kPromptItem, 1)};
constexpr Field kCompletionsFields[] = {
    one_of("prompt", "several prompts make prompts * n choices", kPrompts).needed().by_hand(),
    whole("max_tokens", "left out: 16; 0: for the prompt alone", 0, kMaxInt32),
    whole("max_completion_tokens", "the same; wins where both are sent", 0, kMaxInt32),
    whole("best_of", "that many are generated and the `n` most likely ones shown", 1)
        .up_to(ServerBound::kChoices),
    whole("logprobs", "of the tokens, with that many of the best others", 0, kMaxTopLogprobs),
    boolean("add_special_tokens", "false: no BOS stands before a prompt that is text"),
    text("suffix", "leave it out", 0, 0),
    nothing("session_id", "a plain prompt has no session; use /v1/chat/completions"),
};

// --- Forks

constexpr Field kOnePrompt[] = {text("", ""), list("", "token ids", kTokenId, 1)};
constexpr Field kTrunkFields[] = {
    list("messages", "the branches are chats", kMessageItem),
    one_of("prompt", "the branches are completions", kOnePrompt),
    text("session_id", "a session as it stands", 1),
    text("response_id", "a chat completion that runs or has ended", 1),
    whole("choice", "of the response", 0, 1023),
    whole("token", "how many of the choice's tokens are kept; left out: all there are", 0,
          std::int64_t{1} << 31),
};
constexpr Shape kTrunk = {"ForkTrunk",
                          "What all branches begin with.",
                          {kTrunkFields, std::span<const Field>(kToolFields).first(1),
                           std::span<const Field>(kTemplateFields).first(1)},
                          {ShapeRule{ShapeRule::Kind::kExactlyOne,
                                     {"messages", "prompt", "session_id", "response_id"},
                                     true,
                                     "it must have one of them"}}};
constexpr Field kEitherLogprobs[] = {boolean("", "of chats"),
                                     whole("", "of completions", 0, kMaxTopLogprobs)};
constexpr Field kBranchOwnFields[] = {
    text("label", "stands in the answer", 0, 200),
    list("messages", "what a chat adds", kMessageItem),
    one_of("prompt", "what a completion adds, of the trunk's kind", kOnePrompt),
    nothing("model", "it is of the whole call"),
    nothing("stream", "it is of the whole call"),
    nothing("stream_options", "it is of the whole call"),
    nothing("session_id", "it belongs into the trunk"),
    nothing("response_id", "it belongs into the trunk"),
    nothing("trunk", "it is of the whole call"),
    nothing("forks", "it is of the whole call"),
    nothing("replace", "it is of the whole call"),
};
constexpr Field kEitherFields[] = {
    whole("max_tokens", "of the reply", 0, kMaxInt32),
    whole("max_completion_tokens", "the same; wins where both are sent", 0, kMaxInt32),
    whole("best_of", "that many are generated and the `n` most likely ones shown; of completions",
          1)
        .up_to(ServerBound::kChoices),
    one_of("logprobs", "", kEitherLogprobs),
    whole("top_logprobs", "of chats", 0, kMaxTopLogprobs),
    boolean("append", "with a stored trunk: behind its tokens as they are"),
    boolean("add_special_tokens", "of completions"),
    boolean("include_reasoning", "of chats"),
};
constexpr Shape kBranch = {"ForkBranch",
                           "",
                           {kBranchOwnFields, kEitherFields, kSamplingFields, kOtherFields,
                            kToolFields, kTemplateFields, kFormatFields}};
constexpr Field kBranchItem = object("", "", kBranch);
constexpr Field kForksFields[] = {
    object("trunk", "", kTrunk).needed(),
    list("forks", "the branches", kBranchItem, 1).up_to(ServerBound::kChoices).needed(),
    nothing("messages", "it belongs into `trunk` or `forks`"),
    nothing("prompt", "it belongs into `trunk` or `forks`"),
    nothing("session_id", "it belongs into `trunk`"),
    boolean("replace", "with a session: a branch's messages are the whole conversation"),
};

// --- Tokens

constexpr Field kTokenizeFields[] = {
    text("model", "whose tokens they are"),
    text("prompt", "text"),
    list("messages", "or a conversation", kMessageItem, 1),
    boolean("add_special_tokens", "false: no BOS stands before a prompt"),
    boolean("return_token_strs", "true: token_strs"),
};
constexpr Field kDetokenizeFields[] = {
    text("model", "whose tokens they are"),
    list("tokens", "token ids", kTokenId).needed(),
};

}  // namespace

constexpr Shape kChatShape = {"ChatRequest",
                              "A conversation to be gone on with.",
                              {kHeadFields, kChatFields, kSamplingFields, kOtherFields, kToolFields,
                               kTemplateFields, kFormatFields},
                              {ShapeRule{ShapeRule::Kind::kAtLeastOne,
                                         {"messages", "session_id"},
                                         false,
                                         "`messages` must be a list of at least one message"}}};
constexpr Shape kCompletionsShape = {
    "CompletionRequest",
    "A prompt to be gone on with, as it is.",
    {kHeadFields, kCompletionsFields, kSamplingFields, kOtherFields, kFormatFields}};
constexpr Shape kForksShape = {"ForksRequest",
                               "Several calls on one trunk. What stands beside `trunk` and `forks` "
                               "is every branch's, unless it has its own.",
                               {kForksFields, kHeadFields, kEitherFields, kSamplingFields,
                                kOtherFields, kToolFields, kTemplateFields, kFormatFields}};
constexpr Shape kTokenizeShape = {"TokenizeRequest",
                                  "",
                                  {kTokenizeFields, kToolFields, kTemplateFields},
                                  {ShapeRule{ShapeRule::Kind::kAtLeastOne,
                                             {"prompt", "messages"},
                                             true,
                                             "it must have `prompt`, a string, or `messages`"}}};
constexpr Shape kDetokenizeShape = {"DetokenizeRequest", "", {kDetokenizeFields}};

}  // namespace thaw::coalescer
