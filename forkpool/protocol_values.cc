#include "forkpool/protocol_values.h"

#include <algorithm>
#include <array>
#include <utility>

namespace thaw::forkpool {

Result<void> check_request(const GenerateRequest& request) {
  const auto wrong = [](const std::string& what) {
    return make_error(Errc::kInvalidArgument, "request." + what);
  };
  const std::pair<const char*, const std::string*> names[] = {
      {"tenant", &request.tenant},   {"cache_salt", &request.cache_salt},
      {"model", &request.model},     {"adapter", &request.adapter},
      {"session", &request.session}, {"trace_id", &request.trace_id}};
  for (const auto& [name, text] : names) {
    if (text->size() <= kMaxNameBytes) continue;
    return wrong(std::string(name) + " has " + std::to_string(text->size()) + " bytes; at most " +
                 std::to_string(kMaxNameBytes));
  }
  if (request.grammar.size() > kMaxTextBytes) {
    return wrong("grammar has " + std::to_string(request.grammar.size()) + " bytes; at most " +
                 std::to_string(kMaxTextBytes));
  }
  if (request.prompt.empty()) return wrong("prompt has no token; at least 1");
  if (request.num_choices == 0 || request.num_choices > kMaxChoices) {
    return wrong("num_choices is " + std::to_string(request.num_choices) + "; 1 to " +
                 std::to_string(kMaxChoices));
  }
  const SamplingParams& sampling = request.sampling;
  const std::pair<const char*, std::size_t> sizes[] = {
      {"logit_bias", sampling.logit_bias.size()},
      {"stop_token_ids", sampling.stop_token_ids.size()},
      {"allowed_token_ids", sampling.allowed_token_ids.size()},
      {"bad_words", sampling.bad_words.size()}};
  for (const auto& [name, size] : sizes) {
    if (size <= kMaxListItems) continue;
    return wrong(std::string("sampling.") + name + " has " + std::to_string(size) +
                 " items; at most " + std::to_string(kMaxListItems));
  }
  std::size_t num_tokens = request.prompt.size();
  const auto negative = [](TokenId token) { return token < 0; };
  if (std::ranges::any_of(request.prompt, negative)) return wrong("prompt holds a negative token");
  if (std::ranges::any_of(sampling.stop_token_ids, negative)) {
    return wrong("sampling.stop_token_ids holds a negative token");
  }
  if (std::ranges::any_of(sampling.allowed_token_ids, negative)) {
    return wrong("sampling.allowed_token_ids holds a negative token");
  }
  for (const auto& word : sampling.bad_words) {
    if (word.size() > kMaxListItems || std::ranges::any_of(word, negative))
      return wrong("sampling.bad_words holds a negative token or a word that is too long");
    num_tokens += word.size();
  }
  if (request.prompt_scored >= request.prompt.size()) {
    return wrong("prompt_scored is " + std::to_string(request.prompt_scored) +
                 "; below the prompt's " + std::to_string(request.prompt.size()) + " tokens");
  }
  std::vector<bool> seen(request.num_choices, false);
  for (const ResumedChoice& choice : request.resumed) {
    if (choice.choice_index >= request.num_choices || seen[choice.choice_index]) {
      return wrong("resumed names choice " + std::to_string(choice.choice_index) +
                   " twice or beyond num_choices");
    }
    seen[choice.choice_index] = true;
    if (std::ranges::any_of(choice.generated, negative)) {
      return wrong("resumed holds a negative token");
    }
    num_tokens += choice.generated.size();
  }
  if (num_tokens > kMaxTokens) {
    return wrong("prompt and resumed have " + std::to_string(num_tokens) + " tokens; at most " +
                 std::to_string(kMaxTokens));
  }
  return {};
}

}  // namespace thaw::forkpool

namespace thaw::forkpool::wire {
namespace {

constexpr std::pair<FinishReason, const char*> kReasons[] = {
    {FinishReason::kStop, "stop"},
    {FinishReason::kLength, "length"},
    {FinishReason::kCancelled, "cancelled"}};

constexpr Errc kCodes[] = {Errc::kInvalidArgument,   Errc::kUnauthenticated,
                           Errc::kNotFound,          Errc::kUnsupported,
                           Errc::kResourceExhausted, Errc::kUnavailable,
                           Errc::kDeadlineExceeded,  Errc::kCancelled,
                           Errc::kDataLoss,          Errc::kIo,
                           Errc::kProtocol,          Errc::kCuda,
                           Errc::kInternal};

constexpr std::pair<const char*, std::uint64_t EngineStats::*> kStats[] = {
    {"steps", &EngineStats::steps},
    {"tokens_prefilled", &EngineStats::tokens_prefilled},
    {"tokens_reprefilled", &EngineStats::tokens_reprefilled},
    {"tokens_cached", &EngineStats::tokens_cached},
    {"tokens_decoded", &EngineStats::tokens_decoded},
    {"tokens_discarded", &EngineStats::tokens_discarded},
    {"preemptions", &EngineStats::preemptions},
    {"evicted_blocks", &EngineStats::evicted_blocks},
    {"copied_blocks", &EngineStats::copied_blocks},
    {"trunk_waits", &EngineStats::trunk_waits},
    {"snapshots", &EngineStats::snapshots},
    {"restores", &EngineStats::restores},
    {"grammars_compiled", &EngineStats::grammars_compiled},
    {"grammar_cache_hits", &EngineStats::grammar_cache_hits},
    {"grammar_compile_us", &EngineStats::grammar_compile_us},
    {"grammar_masks", &EngineStats::grammar_masks},
    {"grammar_mask_us", &EngineStats::grammar_mask_us},
    {"blocks_total", &EngineStats::blocks_total},
    {"blocks_free", &EngineStats::blocks_free},
    {"running", &EngineStats::running},
    {"waiting", &EngineStats::waiting}};
// A counter that is added and not listed here would be lost on the way.
static_assert(sizeof(EngineStats) == std::size(kStats) * sizeof(std::uint64_t));

constexpr std::int64_t kMaxToken = std::numeric_limits<TokenId>::max();

Json pairs(const std::vector<TokenLogprob>& logprobs) {
  Json list = Json::array();
  for (const TokenLogprob& item : logprobs)
    list.push_back(Json::array({item.token, item.logprob}));
  return list;
}

std::vector<TokenLogprob> read_pairs(const Fields& fields, const Json& list, const char* name) {
  std::vector<TokenLogprob> logprobs;
  if (!list.is_array() || list.size() > kMaxListItems) fields.wrong(name, "is no list of pairs");
  for (const Json& item : list) {
    if (!item.is_array() || item.size() != 2) fields.wrong(name, "is no list of pairs");
    logprobs.push_back({static_cast<TokenId>(fields.integer(item[0], name, 0, kMaxToken)),
                        fields.number(item[1], name)});
  }
  return logprobs;
}

Json to_json(const SamplingParams& sampling) {
  Json bias = Json::array();
  for (const auto& [token, value] : sampling.logit_bias)
    bias.push_back(Json::array({token, value}));
  Json bad_words = Json::array();
  for (const auto& word : sampling.bad_words)
    bad_words.push_back(pack(word));
  return {{"temperature", sampling.temperature},
          {"top_k", sampling.top_k},
          {"top_p", sampling.top_p},
          {"min_p", sampling.min_p},
          {"repetition_penalty", sampling.repetition_penalty},
          {"presence_penalty", sampling.presence_penalty},
          {"frequency_penalty", sampling.frequency_penalty},
          {"logit_bias", std::move(bias)},
          {"allowed_token_ids", pack(sampling.allowed_token_ids)},
          {"bad_words", std::move(bad_words)},
          {"max_tokens", sampling.max_tokens},
          {"min_tokens", sampling.min_tokens},
          {"stop_token_ids", pack(sampling.stop_token_ids)},
          {"ignore_eos", sampling.ignore_eos},
          {"seed", sampling.seed},
          {"top_logprobs", sampling.top_logprobs}};
}

SamplingParams read_sampling(const Json& value) {
  const Fields fields(value, "request.sampling");
  SamplingParams sampling;
  sampling.temperature = fields.f32("temperature");
  sampling.top_k = fields.i32("top_k");
  sampling.top_p = fields.f32("top_p");
  sampling.min_p = fields.f32("min_p");
  sampling.repetition_penalty = fields.f32("repetition_penalty");
  sampling.presence_penalty = fields.f32("presence_penalty");
  sampling.frequency_penalty = fields.f32("frequency_penalty");
  for (const Json& item : fields.array("logit_bias", kMaxListItems)) {
    if (!item.is_array() || item.size() != 2) fields.wrong("logit_bias", "is no list of pairs");
    sampling.logit_bias.emplace_back(
        static_cast<TokenId>(fields.integer(item[0], "logit_bias", 0, kMaxToken)),
        fields.number(item[1], "logit_bias"));
  }
  sampling.allowed_token_ids = fields.tokens("allowed_token_ids", kMaxListItems);
  for (const Json& item : fields.array("bad_words", kMaxListItems))
    sampling.bad_words.push_back(fields.tokens(item, "bad_words", kMaxListItems));
  sampling.max_tokens = fields.u32("max_tokens");
  sampling.min_tokens = fields.u32("min_tokens");
  sampling.stop_token_ids = fields.tokens("stop_token_ids", kMaxListItems);
  sampling.ignore_eos = fields.boolean("ignore_eos");
  sampling.seed = fields.u64("seed");
  sampling.top_logprobs = fields.i32("top_logprobs");
  return sampling;
}

}  // namespace

std::string cut_text(const std::string& text) {
  if (text.size() <= kMaxTextBytes) return text;
  std::size_t end = kMaxTextBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0U) == 0x80U)
    --end;
  return text.substr(0, end);
}

Json to_json(const GenerateRequest& request) {
  Json resumed = Json::array();
  for (const ResumedChoice& choice : request.resumed) {
    resumed.push_back({{"choice", choice.choice_index}, {"generated", pack(choice.generated)}});
  }
  return {{"id", request.id},
          {"tenant", request.tenant},
          {"cache_salt", request.cache_salt},
          {"model", request.model},
          {"adapter", request.adapter},
          {"session", request.session},
          {"parent", request.parent},
          {"cut_position", request.cut_position},
          {"priority", request.priority},
          {"deadline_ms", request.deadline ? Json(request.deadline->count()) : Json(nullptr)},
          {"trace_id", request.trace_id},
          {"pin", request.pin},
          {"ttl_s", request.ttl.count()},
          {"grammar", request.grammar},
          {"worker", request.worker ? Json(*request.worker) : Json(nullptr)},
          {"prompt", pack(request.prompt)},
          {"num_choices", request.num_choices},
          {"sampling", to_json(request.sampling)},
          {"prompt_logprobs", request.prompt_logprobs},
          {"prompt_scored", request.prompt_scored},
          {"resumed", std::move(resumed)}};
}

GenerateRequest read_request(const Json& value) {
  const Fields fields(value, "request");
  GenerateRequest request;
  request.id = fields.u64("id");
  request.tenant = fields.text("tenant", kMaxNameBytes);
  request.cache_salt = fields.text("cache_salt", kMaxNameBytes);
  request.model = fields.text("model", kMaxNameBytes);
  request.adapter = fields.text("adapter", kMaxNameBytes);
  request.session = fields.text("session", kMaxNameBytes);
  request.parent = fields.u64("parent");
  request.cut_position = fields.u32("cut_position");
  request.priority = fields.i32("priority");
  if (!fields.is_nil("deadline_ms")) {
    request.deadline = std::chrono::milliseconds(fields.i64("deadline_ms"));
  }
  request.trace_id = fields.text("trace_id", kMaxNameBytes);
  request.pin = fields.boolean("pin");
  request.ttl = std::chrono::seconds(fields.i64("ttl_s"));
  request.grammar = fields.text("grammar", kMaxTextBytes);
  if (!fields.is_nil("worker")) request.worker = fields.u32("worker");
  request.prompt = fields.tokens("prompt", kMaxTokens);
  request.num_choices = fields.u32("num_choices", kMaxChoices);
  request.sampling = read_sampling(fields.at("sampling"));
  request.prompt_logprobs = fields.i32("prompt_logprobs");
  request.prompt_scored = fields.u32("prompt_scored");
  for (const Json& item : fields.array("resumed", kMaxChoices)) {
    const Fields choice(item, "request.resumed");
    request.resumed.push_back({choice.u32("choice"), choice.tokens("generated", kMaxTokens)});
  }
  if (Result<void> checked = check_request(request); !checked) fail(checked.error().message);
  return request;
}

Json to_json(const GenerateEvent& event) {
  struct Visitor {
    Json operator()(const AdmittedEvent& admitted) const {
      return {{"type", "admitted"}, {"request", admitted.request}, {"worker", admitted.worker}};
    }
    Json operator()(const PromptLogprobsEvent& scored) const {
      Json tokens = Json::array();
      for (const PromptLogprob& token : scored.tokens)
        tokens.push_back(Json::array({token.logprob, token.rank, pairs(token.best)}));
      return {{"type", "prompt_logprobs"},
              {"request", scored.request},
              {"first", scored.first},
              {"tokens", std::move(tokens)}};
    }
    Json operator()(const TokenEvent& token) const {
      return {{"type", "token"},
              {"request", token.request},
              {"choice", token.choice},
              {"index", token.index},
              {"token", token.token},
              {"logprob", token.logprob},
              {"top_logprobs", pairs(token.top_logprobs)}};
    }
    Json operator()(const FinishedEvent& finished) const {
      const auto* reason = std::ranges::find(kReasons, finished.reason,
                                             &std::pair<FinishReason, const char*>::first);
      return {{"type", "finished"},
              {"request", finished.request},
              {"choice", finished.choice},
              {"reason", reason->second},
              {"stop_token", finished.stop_token ? Json(*finished.stop_token) : Json(nullptr)}};
    }
    Json operator()(const CompletedEvent& completed) const {
      return {{"type", "completed"},
              {"request", completed.request},
              {"prompt_tokens", completed.usage.prompt_tokens},
              {"cached_tokens", completed.usage.cached_tokens},
              {"generated_tokens", completed.usage.generated_tokens}};
    }
    Json operator()(const FailedEvent& failed) const {
      return {{"type", "failed"}, {"request", failed.request}, {"error", to_json(failed.error)}};
    }
  };
  return std::visit(Visitor{}, event);
}

GenerateEvent read_event(const Json& value) {
  const Fields fields(value, "event");
  const std::string type = fields.text("type", 16);
  const RequestId request = fields.u64("request");
  if (type == "token") {
    TokenEvent token{.request = request,
                     .choice = fields.u32("choice"),
                     .index = fields.u32("index"),
                     .token = static_cast<TokenId>(fields.u32("token", kMaxToken)),
                     .logprob = fields.f32("logprob"),
                     .top_logprobs = {}};
    token.top_logprobs = read_pairs(fields, fields.at("top_logprobs"), "top_logprobs");
    return token;
  }
  if (type == "prompt_logprobs") {
    PromptLogprobsEvent scored{request, fields.u32("first"), {}};
    for (const Json& item : fields.array("tokens", kMaxListItems)) {
      if (!item.is_array() || item.size() != 3)
        fields.wrong("tokens", "is no list of log-probability, rank and others");
      scored.tokens.push_back({fields.number(item[0], "tokens"),
                               static_cast<std::uint32_t>(fields.integer(
                                   item[1], "tokens", 0, std::numeric_limits<std::int32_t>::max())),
                               read_pairs(fields, item[2], "tokens")});
    }
    return scored;
  }
  if (type == "admitted") return AdmittedEvent{request, fields.u32("worker")};
  if (type == "finished") {
    FinishedEvent finished;
    finished.request = request;
    finished.choice = fields.u32("choice");
    const std::string reason = fields.text("reason", 16);
    const auto* known = std::ranges::find_if(
        kReasons, [&](const auto& candidate) { return reason == candidate.second; });
    if (known == std::end(kReasons)) fields.wrong("reason", "is none of stop, length, cancelled");
    finished.reason = known->first;
    if (!fields.is_nil("stop_token")) {
      finished.stop_token = static_cast<TokenId>(fields.u32("stop_token", kMaxToken));
    }
    return finished;
  }
  if (type == "completed") {
    return CompletedEvent{request,
                          {.prompt_tokens = fields.u32("prompt_tokens"),
                           .cached_tokens = fields.u32("cached_tokens"),
                           .generated_tokens = fields.u32("generated_tokens")}};
  }
  if (type == "failed") return FailedEvent{request, read_error(fields.at("error"))};
  fields.wrong("type", "is none of admitted, prompt_logprobs, token, finished, completed, failed");
}

Json to_json(const kvsnap::Manifest& manifest) {
  Json extents = Json::array();
  for (const kvsnap::Extent& extent : manifest.extents) {
    extents.push_back(
        {{"offset", extent.offset}, {"size_bytes", extent.size_bytes}, {"crc32c", extent.crc32c}});
  }
  return {{"cache_root", pack(manifest.cache_root)},
          {"kv_layout", manifest.kv_layout},
          {"block_size", manifest.block_size},
          {"block_bytes", manifest.block_bytes},
          {"token_ids", pack(manifest.token_ids)},
          {"tp_rank", manifest.tp_rank},
          {"tp_size", manifest.tp_size},
          {"extents", std::move(extents)}};
}

kvsnap::Manifest read_manifest(const Json& value) {
  const Fields fields(value, "manifest");
  kvsnap::Manifest manifest;
  manifest.cache_root = fields.hash("cache_root");
  manifest.kv_layout = fields.text("kv_layout", kMaxNameBytes);
  manifest.block_size = fields.u32("block_size");
  manifest.block_bytes = fields.u64("block_bytes");
  manifest.token_ids = fields.tokens("token_ids", kMaxTokens);
  manifest.tp_rank = fields.u32("tp_rank");
  manifest.tp_size = fields.u32("tp_size");
  for (const Json& item : fields.array("extents", kMaxListItems)) {
    const Fields extent(item, "manifest.extents");
    manifest.extents.push_back(
        {extent.u64("offset"), extent.u64("size_bytes"), extent.u32("crc32c")});
  }
  return manifest;
}

Json to_json(const DeviceMemory& memory) {
  return {{"rank", memory.rank},
          {"device", memory.device},
          {"image", pack(memory.image)},
          {"weights_bytes", memory.weights_bytes},
          {"weights_digest", pack(memory.weights_digest)},
          {"kv_bytes", memory.kv_bytes},
          {"kv_layout", memory.kv_layout},
          {"block_bytes", memory.block_bytes}};
}

DeviceMemory read_memory(const Json& value) {
  const Fields fields(value, "memory");
  DeviceMemory memory;
  memory.rank = fields.u32("rank");
  memory.device = fields.text("device", kMaxNameBytes);
  memory.image = fields.hash("image");
  memory.weights_bytes = fields.u64("weights_bytes");
  memory.weights_digest = fields.hash("weights_digest");
  memory.kv_bytes = fields.u64("kv_bytes");
  memory.kv_layout = fields.text("kv_layout", kMaxNameBytes);
  memory.block_bytes = fields.u64("block_bytes");
  return memory;
}

Json to_json(const EngineStats& stats) {
  Json value = Json::object();
  for (const auto& [name, member] : kStats)
    value[name] = stats.*member;
  return value;
}

EngineStats read_stats(const Json& value) {
  const Fields fields(value, "stats");
  EngineStats stats;
  for (const auto& [name, member] : kStats)
    stats.*member = fields.u64(name);
  return stats;
}

Json to_json(const Error& error) {
  return {{"code", errc_name(error.code)}, {"message", cut_text(error.message)}};
}

Error read_error(const Json& value) {
  const Fields fields(value, "error");
  const std::string name = fields.text("code", 64);
  const Errc* code =
      std::ranges::find_if(kCodes, [&](Errc candidate) { return name == errc_name(candidate); });
  if (code == std::end(kCodes)) fields.wrong("code", "is no error code");
  return Error{*code, fields.text("message", kMaxTextBytes), "", 0};
}

}  // namespace thaw::forkpool::wire
