#include "tests/coalescer/http_fakes.h"

#include <algorithm>
#include <chrono>
#include <span>

#include "coalescer/openai/json_text.h"
#include "engine/base/hash.h"

namespace thaw::coalescer {
namespace {

constexpr std::chrono::seconds kPatience{10};

/// Cuts between characters; invalid bytes become U+FFFD.
class ByteStream final : public TextStream {
 public:
  std::string push(TokenId token) override {
    if (token < 256) pending_ += static_cast<char>(token);
    std::string out;
    while (!pending_.empty()) {
      const std::size_t length = utf8_character_length(pending_);
      if (length == 0 && pending_.size() < 4 && (pending_[0] & 0xc0) == 0xc0) break;
      out += length == 0 ? "\xef\xbf\xbd" : pending_.substr(0, length);
      pending_.erase(0, std::max<std::size_t>(length, 1));
    }
    return out;
  }
  bool is_inside_character() const override { return !pending_.empty(); }
  std::string finish() override {
    std::string out = pending_.empty() ? "" : "\xef\xbf\xbd";
    pending_.clear();
    return out;
  }

 private:
  std::string pending_;
};

}  // namespace

std::vector<TokenId> byte_tokens(std::string_view text) {
  std::vector<TokenId> tokens;
  for (const char c : text)
    tokens.push_back(static_cast<unsigned char>(c));
  return tokens;
}

std::string text_of(const GenerateRequest& request) {
  return ByteCodec().decode(request.prompt, /*keep_special=*/true);
}

Result<std::vector<TokenId>> ByteCodec::encode_chat(const ChatPrompt& prompt) const {
  return encode_from(prompt, 0);
}

Result<std::vector<TokenId>> ByteCodec::encode_after(const ChatPrompt& prompt,
                                                     std::size_t index) const {
  auto tail = encode_from(prompt, index + 1);
  if (tail) tail->insert(tail->begin(), '\n');
  return tail;
}

Result<std::vector<TokenId>> ByteCodec::encode_from(const ChatPrompt& prompt, std::size_t first) {
  std::size_t last_user = 0;
  for (std::size_t i = 0; i < prompt.messages.size(); ++i)
    if (prompt.messages[i]["role"] == "user") last_user = i;
  std::string text;
  for (std::size_t i = first; i < prompt.messages.size(); ++i) {
    const auto& message = prompt.messages[i];
    if (message["role"] == "refused")
      return make_error(Errc::kInvalidArgument, "the template refuses this role");
    auto content = message["content"].get<std::string>();
    const std::size_t thought =
        content.rfind("<t>", 0) == 0 ? content.find("</t>") : std::string::npos;
    if (thought != std::string::npos && message["role"] == "assistant" && i < last_user)
      content.erase(0, thought + 4);
    // An assistant's text follows the call for it, as in real templates.
    const auto role = message["role"].get<std::string>();
    text += role + (role == "assistant" ? ":" : ": ") + content + "\n";
  }
  if (!prompt.tools.is_null()) text += "tools: " + prompt.tools.dump() + "\n";
  if (prompt.add_generation_prompt) text += "assistant:";
  if (prompt.continue_final_message) text.pop_back();
  return byte_tokens(text);
}

std::vector<TokenId> ByteCodec::encode_text(std::string_view text, bool add_special) const {
  std::vector<TokenId> tokens = byte_tokens(text);
  if (add_special && !tokens.empty()) tokens.insert(tokens.begin(), kBos);
  return tokens;
}

std::string ByteCodec::decode(std::span<const TokenId> tokens, bool keep_special) const {
  std::string text;
  for (const TokenId token : tokens) {
    if (token < 256)
      text += static_cast<char>(token);
    else if (keep_special)
      text += token == kBos ? "<bos>" : "<eos>";
  }
  return text;
}

std::unique_ptr<TextStream> ByteCodec::new_stream(bool) const {
  return std::make_unique<ByteStream>();
}

void FakeBackend::set_event_sink(std::function<void(GenerateEvent)> sink) {
  const std::scoped_lock lock(mutex_);
  sink_ = std::move(sink);
  status_.ready = true;
  if (status_.workers.empty()) {
    status_.workers.emplace_back().ready = true;
    status_.workers.back().system_fingerprint = "fake-1";
  }
}

void FakeBackend::submit(ForkPlan plan) {
  {
    const std::scoped_lock lock(mutex_);
    for (const PlannedRequest& planned : plan.requests) {
      const RequestId id = planned.request.id;
      // A server that starts anew with this backend counts its requests from 1 again.
      next_index_.erase(next_index_.lower_bound({id, 0}), next_index_.lower_bound({id + 1, 0}));
      requests_.push_back(planned.request);
    }
    plans_.push_back(plan);
    changed_.notify_all();
  }
  if (!automatic_) return;
  for (const PlannedRequest& planned : plan.requests)
    answer(planned.request);
}

void FakeBackend::answer(const GenerateRequest& request) {
  emit(AdmittedEvent{request.id, 0});
  if (request.prompt_logprobs >= 0 && request.prompt.size() > 1) {
    PromptLogprobsEvent scored{request.id, 1, {}};
    for (std::size_t i = 1; i < request.prompt.size(); ++i)
      scored.tokens.push_back({-0.5F * static_cast<float>(i), 1, {}});
    emit(std::move(scored));
  }
  for (std::uint32_t choice = 0; choice < request.num_choices; ++choice) {
    const std::uint32_t count = std::min<std::uint32_t>(request.sampling.max_tokens,
                                                        static_cast<std::uint32_t>(reply.size()));
    emit_text(request.id, std::string_view(reply).substr(0, count), choice);
    const bool stopped = count < request.sampling.max_tokens;
    FinishedEvent finished{request.id, choice, FinishReason::kLength, std::nullopt};
    if (stopped) {
      finished.reason = FinishReason::kStop;
      finished.stop_token = ByteCodec::kEos;
    }
    emit(finished);
  }
  const auto prompt = static_cast<std::uint32_t>(request.prompt.size());
  emit(CompletedEvent{request.id, Usage{prompt, prompt / 2, 0}});
}

void FakeBackend::cancel(RequestId request) {
  const std::scoped_lock lock(mutex_);
  cancelled_.push_back(request);
  changed_.notify_all();
}

void FakeBackend::end_choice(RequestId request, std::uint32_t choice) {
  const std::scoped_lock lock(mutex_);
  ended_choices_.emplace(request, choice);
  changed_.notify_all();
}

PoolStatus FakeBackend::status() const {
  const std::scoped_lock lock(mutex_);
  return status_;
}

namespace {

/// Cuts what is not a whole block.
KeptTrunk whole_blocks(std::vector<TokenId>& tokens) {
  tokens.resize(tokens.size() / kBlockSize * kBlockSize);
  return {static_cast<std::uint32_t>(tokens.size()),
          tokens.size() * FakeBackend::kFakeTokenBytes,
          {},
          hash_bytes(std::as_bytes(std::span(tokens)))};
}

}  // namespace

void FakeBackend::keep(KeepTrunk trunk, TrunkDone done) {
  const auto kept = [&]() -> Result<KeptTrunk> {
    const std::scoped_lock lock(mutex_);
    if (trunk_error_) return *trunk_error_;
    KeptTrunk what = whole_blocks(trunk.token_ids);
    if (what.num_tokens == 0) return make_error(Errc::kNotFound, "no whole block to keep");
    // As in the pool, a longer trunk that begins with them is what holds them.
    for (const auto& [other, held] : kept_) {
      const auto& tokens = held.token_ids;
      if (other == trunk.pin || held.owner != trunk.owner || tokens.size() < what.num_tokens ||
          !std::equal(trunk.token_ids.begin(), trunk.token_ids.end(), tokens.begin()))
        continue;
      what.bytes = tokens.size() * kFakeTokenBytes;
      what.trunk = hash_bytes(std::as_bytes(std::span(tokens)));
    }
    const PinId pin = trunk.pin;
    kept_[pin] = std::move(trunk);
    return what;
  }();
  done(kept);
}

void FakeBackend::release(const PinId& pin) {
  const std::scoped_lock lock(mutex_);
  kept_.erase(pin);
}

void FakeBackend::save(SaveTrunk trunk, TrunkDone done) {
  const auto saved = [&]() -> Result<KeptTrunk> {
    const std::scoped_lock lock(mutex_);
    if (trunk_error_) return *trunk_error_;
    const KeptTrunk what = whole_blocks(trunk.token_ids);
    if (what.num_tokens == 0) return make_error(Errc::kNotFound, "no whole block to save");
    const std::string path = trunk.path;
    files_[path] = std::move(trunk);
    return what;
  }();
  done(saved);
}

void FakeBackend::load(LoadTrunk trunk, TrunkDone done) {
  const auto loaded = [&]() -> Result<KeptTrunk> {
    const std::scoped_lock lock(mutex_);
    if (trunk_error_) return *trunk_error_;
    const auto file = files_.find(trunk.path);
    if (file == files_.end()) return make_error(Errc::kNotFound, trunk.path + ": no such file");
    if (file->second.owner != trunk.owner)
      return make_error(Errc::kUnauthenticated, trunk.path + " is another owner's");
    std::vector<TokenId> tokens = file->second.token_ids;
    KeptTrunk what = whole_blocks(tokens);
    kept_[trunk.pin] = {trunk.pin, trunk.owner, tokens, trunk.ttl};
    what.token_ids = std::move(tokens);
    return what;
  }();
  done(loaded);
}

void FakeBackend::set_trunk_error(std::optional<Error> error) {
  const std::scoped_lock lock(mutex_);
  trunk_error_ = std::move(error);
}

std::map<PinId, KeepTrunk> FakeBackend::kept() const {
  const std::scoped_lock lock(mutex_);
  return kept_;
}

void FakeBackend::set_status(PoolStatus status) {
  const std::scoped_lock lock(mutex_);
  status_ = std::move(status);
}

void FakeBackend::emit(GenerateEvent event) {
  std::function<void(GenerateEvent)> sink;
  {
    const std::scoped_lock lock(mutex_);
    sink = sink_;
  }
  sink(std::move(event));
}

void FakeBackend::emit_text(RequestId request, std::string_view text, std::uint32_t choice) {
  for (const TokenId token : byte_tokens(text)) {
    TokenEvent event;
    event.request = request;
    event.choice = choice;
    {
      const std::scoped_lock lock(mutex_);
      event.index = next_index_[{request, choice}]++;
    }
    event.token = token;
    event.logprob = -0.5F;
    event.top_logprobs = {{token, -0.5F}, {'z', -2.0F}};
    emit(std::move(event));
  }
}

void FakeBackend::emit_end(RequestId request, bool stop) {
  GenerateRequest found;
  {
    const std::scoped_lock lock(mutex_);
    for (const GenerateRequest& known : requests_)
      if (known.id == request) found = known;
  }
  for (std::uint32_t choice = 0; choice < found.num_choices; ++choice) {
    FinishedEvent finished{request, choice, FinishReason::kLength, std::nullopt};
    if (stop) {
      finished.reason = FinishReason::kStop;
      finished.stop_token = ByteCodec::kEos;
    }
    emit(finished);
  }
  const auto prompt = static_cast<std::uint32_t>(found.prompt.size());
  emit(CompletedEvent{request, Usage{prompt, prompt / 2, 0}});
}

GenerateRequest FakeBackend::wait_for_request(std::size_t count) {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_for(lock, kPatience, [&] { return requests_.size() >= count; }))
    throw std::runtime_error("no request arrived");
  return requests_[count - 1];
}

bool FakeBackend::wait_for_cancel(RequestId request) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, kPatience, [&] {
    return std::find(cancelled_.begin(), cancelled_.end(), request) != cancelled_.end();
  });
}

bool FakeBackend::wait_for_end_of_choice(RequestId request, std::uint32_t choice) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, kPatience, [&] {
    return ended_choices_.contains({request, choice});
  });
}

std::size_t FakeBackend::num_plans() const {
  const std::scoped_lock lock(mutex_);
  return plans_.size();
}

std::vector<ForkPlan> FakeBackend::plans() const {
  const std::scoped_lock lock(mutex_);
  return plans_;
}

std::vector<RequestId> FakeBackend::cancelled() const {
  const std::scoped_lock lock(mutex_);
  return cancelled_;
}

}  // namespace thaw::coalescer
