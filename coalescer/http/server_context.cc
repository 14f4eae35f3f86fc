#include "coalescer/http/server_context.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include <boost/asio/post.hpp>
#include <spdlog/fmt/fmt.h>

#include "coalescer/openai/admin_bodies.h"

namespace thaw::coalescer {
namespace {

constexpr std::size_t kHistoryRequests = 256;
constexpr std::size_t kHistoryTokens = 4U << 20;
/// Bodies that are held at the same time, in multiples of the largest one.
constexpr std::uint64_t kBodyBudgetFactor = 4;

/// After which another process may have taken a draining one's place.
constexpr std::chrono::milliseconds kSuccessorWait{1000};
constexpr std::chrono::milliseconds kShortestLoad{100};
constexpr std::chrono::milliseconds kLongestLoad{10000};

std::uint64_t random_seed() {
  std::random_device device;
  return (std::uint64_t{device()} << 32) | device();
}

/// What is left of the prompts of a model that was unregistered has no text; where another has its
/// name, ids that it lacks have none.
std::string text_of(const ServedModels& models, const std::string& name,
                    std::span<const TokenId> tokens) {
  const auto model = models.find(name);
  if (model == nullptr) return "";
  std::vector<TokenId> known;
  for (const TokenId token : tokens)
    if (token < model->codec->vocab_size()) known.push_back(token);
  return model->codec->decode(known, /*keep_special=*/true);
}

}  // namespace

ApiError not_ready(ServerContext& context) {
  if (context.draining) {
    ApiError error = to_api_error(make_error(Errc::kUnavailable, "the server is shutting down"));
    error.retry_after = kSuccessorWait;
    return error;
  }
  const std::string failure = context.backend->status().failure;
  ApiError error = to_api_error(
      make_error(Errc::kUnavailable, failure.empty() ? "the model is still loading" : failure));
  // How long it loads nobody knows; as long again as it has been is never far off.
  const auto waited =
      std::chrono::ceil<std::chrono::milliseconds>(context.clock.now() - context.started);
  error.retry_after = std::clamp(waited, kShortestLoad, kLongestLoad);
  return error;
}

BodyLease::~BodyLease() {
  context_->body_bytes -= held_;
}

bool BodyLease::grow_to(std::uint64_t bytes) {
  context_->body_bytes += bytes - held_;
  held_ = bytes;
  return context_->body_bytes <= kBodyBudgetFactor * context_->options.max_body_bytes;
}

ServerContext::ServerContext(ServerOptions server_options, Backend* backend_in,
                             std::shared_ptr<const ServedModels> models_in)
    : options(std::move(server_options)),
      backend(backend_in),
      models(std::move(models_in)),
      history(kHistoryRequests, kHistoryTokens,
              [models = models](const std::string& name, std::span<const TokenId> tokens) {
                return text_of(*models, name, tokens);
              }),
      sessions(options.session_limits, options.session_kept_bytes, backend_in, &clock),
      cache_pins(options.prompt_cache_bytes, backend_in, &clock),
      responses(options.response_limits, &clock, &sessions.calls()),
      dispatcher(options.window, options.max_queued_requests, backend_in, &history, &metrics,
                 &clock),
      keys(options.api_keys),
      text_pool(options.num_text_threads),
      random(random_seed()),
      nonce(fmt::format("{:016x}", random())),
      origins(options.allowed_origins) {
  sessions.set_background(
      [this](std::function<void()> task) { boost::asio::post(file_pool, std::move(task)); });
}

bool ServerContext::backend_was_ready() {
  if (!was_ready_) was_ready_ = backend->status().ready;
  return was_ready_;
}

const std::string& ServerContext::system_fingerprint(const ServedModel& model) {
  std::string& known = fingerprints_[model.name()];
  if (!known.empty() && has_slots_ == false) return known;
  // Where models come and go, another may have the name by now. Workers that are away, or starting,
  // say nothing.
  const PoolStatus status = backend->status();
  has_slots_ = !status.slots.empty();
  for (const WorkerStatus& worker : status.workers) {
    const bool is_its = worker.model.empty() || worker.model == model.name();
    if (!is_its || worker.system_fingerprint.empty()) continue;
    known = worker.system_fingerprint;
    break;
  }
  return known;
}

AnswerMetadata ServerContext::metadata(const ServedModel& model, Clock::TimePoint received) {
  AnswerMetadata metadata;
  metadata.latency_seconds = std::chrono::duration<double>(clock.now() - received).count();
  if (has_slots_ == false) return metadata;  // the usual server has one, which never changes
  const PoolStatus status = backend->status();
  has_slots_ = !status.slots.empty();
  metadata.slot = slot_of(status, model.name());
  return metadata;
}

ApiResult<ServedModelPtr> ServerContext::model_of(const StoredSession& session) const {
  ServedModelPtr model = models->find(session.served);
  if (model != nullptr && model->weights == session.weights) return model;
  ApiError error = invalid_field(
      "session_id",
      "the session's model `" + session.model + "` is " +
          (model == nullptr ? "not served any more" : "served with other weights now") +
          "; export the session and import it where the model is served",
      "session_model_gone");
  error.status = 409;
  return error;
}

ServedModelPtr ServerContext::model_of(const std::string& weights, const std::string& name) const {
  const auto all = models->list();
  const auto found = std::ranges::find_if(all, [&](const ServedModelPtr& model) {
    return !weights.empty() && model->weights == weights;
  });
  if (found != all.end()) return *found;
  const auto named = name.empty() ? nullptr : models->find(name);
  return named != nullptr ? named : models->find("");
}

std::string ServerContext::next_response_id(ApiKind kind) {
  if (kind == ApiKind::kResponses) return fmt::format("resp_{}{:016x}", nonce, next_response_++);
  if (kind == ApiKind::kMessages) return next_response_id("msg");
  return next_response_id(kind == ApiKind::kChat ? "chatcmpl" : "cmpl");
}

std::string ServerContext::next_response_id(const char* prefix) {
  return fmt::format("{}-{}-{}", prefix, nonce, next_response_++);
}

void ServerContext::expire() {
  sessions.store().expire();
  cache_pins.expire();
  responses.store().expire();
}

std::string ServerContext::metrics_text() {
  expire();
  metrics.requests_queued = dispatcher.num_queued();
  metrics.requests_in_flight = dispatcher.num_in_flight();
  metrics.sessions = sessions.counts();
  metrics.cache_pins = cache_pins.num_pinned();
  metrics.cache_pin_bytes = cache_pins.bytes();
  metrics.responses = responses.store().size();
  metrics.response_bytes = responses.store().bytes();
  metrics.responses_running = responses.num_running();
  metrics.responses_dropped = responses.store().num_dropped();
  return metrics.render(backend->status(), options.version);
}

}  // namespace thaw::coalescer
