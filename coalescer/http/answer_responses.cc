// The part of Session (a connection) that answers /v1/responses and what is below it.

#include <algorithm>
#include <exception>
#include <string>
#include <utility>
#include <variant>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "coalescer/http/response_service.h"
#include "coalescer/http/session.h"
#include "coalescer/http/text_work.h"
#include "coalescer/openai/json_text.h"
#include "coalescer/openai/responses_call.h"
#include "coalescer/openai/responses_prompt.h"
#include "engine/base/log.h"

namespace thaw::coalescer {
namespace {

namespace net = boost::asio;

struct PreparedResponse {
  ApiCall call;
  PreparedPrompt prompt;
};

ApiResult<ApiCall> parse_body(const ServerContext* context, const std::string& body) {
  auto parsed =
      parse_call(ApiKind::kResponses, body, *context->models, context->options.max_num_seqs);
  if (auto* call = std::get_if<ApiCall>(&parsed); call != nullptr) {
    if (call->explain && call->responses->background) {
      return unsupported_field("thaw.explain",
                               "`thaw.explain` is true but so is `background`; an answer that "
                               "nobody waits for explains nothing");
    }
  }
  return parsed;
}

net::awaitable<ApiResult<ApiCall>> parse_response_on_pool(const ServerContext* context,
                                                          std::string body) {
  co_return parse_body(context, body);
}

ApiResult<PreparedResponse> prepare(const ServerContext* context, ApiCall call,
                                    const ResponsesPast& past) {
  if (auto error = resolve_references(call, past)) return std::move(*error);
  const ServedModel& model = *call.served;
  auto prompt = prepare_responses(call, past, *model.codec, model.max_model_len);
  if (auto* error = std::get_if<ApiError>(&prompt)) return std::move(*error);
  PreparedResponse prepared{std::move(call), std::move(std::get<PreparedPrompt>(prompt))};
  auto plan = plan_reply(prepared.call, prepared.prompt.tokens, /*known_tools=*/"",
                         context->options.eager_tools, *model.codec, context->options.has_grammars);
  if (auto* error = std::get_if<ApiError>(&plan)) return std::move(*error);
  prepared.call.reply = std::move(std::get<ReplyPlan>(plan));
  return prepared;
}

net::awaitable<ApiResult<PreparedResponse>> prepare_on_pool(const ServerContext* context,
                                                            ApiCall call, ResponsesPast past) {
  co_return prepare(context, std::move(call), past);
}

ApiResult<std::string> count_tokens(ApiCall call, const ResponsesPast& past) {
  if (auto error = resolve_references(call, past)) return std::move(*error);
  const ServedModelPtr model = call.served;
  return count_input_tokens(call, past, *model->codec, model->max_model_len);
}

net::awaitable<ApiResult<std::string>> count_on_pool(ApiCall call, ResponsesPast past) {
  co_return count_tokens(std::move(call), past);
}

/// Takes the events of a response that runs by itself until it is over.
net::awaitable<void> drive(ServerContext* context, std::shared_ptr<ResponseRun> run) {
  LiveCall& live = run->live();
  Completion& completion = live.completion();
  while (!run->ended()) {
    while (!run->ended() && !completion.ended() &&
           !(completion.started() && completion.has_frames()))
      co_await live.wait();
    if (run->ended()) break;
    const bool last = completion.ended();
    run->add(completion.take_frames());
    if (!last) continue;
    run->add(completion.last_frames(""));
    context->responses.finish(run);
  }
}

ApiError no_such_response(const std::string& id) {
  ApiError error = invalid_field("response_id",
                                 "there is no response `" + id.substr(0, 100) +
                                     "`: it was not stored, was deleted, or has been dropped",
                                 "response_not_found");
  error.status = 404;
  return error;
}

std::string deleted_body(const std::string& id) {
  std::string out = R"({"id":)";
  append_json_string(out, id);
  return out + R"(,"object":"response","deleted":true})";
}

using Items = std::vector<std::pair<std::string, std::string>>;

ApiResult<std::string> items_body(const Items& items, const ItemsPage& page) {
  std::vector<const Items::value_type*> order;
  for (const auto& item : items)
    order.push_back(&item);
  if (page.newest_first) std::ranges::reverse(order);
  if (!page.after.empty()) {
    const auto after = std::ranges::find(
        order, page.after, [](const auto* item) { return std::string_view(item->first); });
    if (after == order.end()) {
      return invalid_field(
          "after", "`after` is `" + page.after.substr(0, 100) + "`, which is none of the items");
    }
    order.erase(order.begin(), after + 1);
  }
  const bool has_more = order.size() > page.limit;
  if (has_more) order.resize(page.limit);
  std::string out = R"({"object":"list","data":[)";
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i > 0) out += ',';
    out += order[i]->second;
  }
  out += R"(],"first_id":)";
  append_json_string_or_null(out, order.empty() ? "" : order.front()->first);
  out += R"(,"last_id":)";
  append_json_string_or_null(out, order.empty() ? "" : order.back()->first);
  return out + (has_more ? R"(,"has_more":true})" : R"(,"has_more":false})");
}

}  // namespace

net::awaitable<bool> Session::answer_responses(Request request) {
  const bool only_counts = request.route.endpoint == Endpoint::kInputTokens;
  if (!only_counts && (context_->draining || !context_->backend_was_ready()))
    co_return co_await reply(request, error_reply(not_ready(*context_)));
  std::string body = std::exchange(request.body, {});
  const std::size_t body_bytes = body.size();
  ApiResult<ApiCall> parsed;
  if (body_bytes <= kInlineBodyBytes) {
    parsed = parse_body(context_, body);
  } else if (only_counts) {
    parsed = co_await net::co_spawn(
        context_->text_pool, parse_response_on_pool(context_, std::move(body)), net::use_awaitable);
  } else {
    parsed = co_await prepare_on_text_thread(context_,
                                             parse_response_on_pool(context_, std::move(body)));
  }
  request.body_lease.reset();
  if (auto* error = std::get_if<ApiError>(&parsed))
    co_return co_await reply(request, error_reply(*error));
  auto& read = std::get<ApiCall>(parsed);
  auto found = context_->responses.past_of(request.tenant, read);
  if (auto* error = std::get_if<ApiError>(&found))
    co_return co_await reply(request, error_reply(*error));
  auto& past = std::get<ResponsesPast>(found);
  const bool is_short = body_bytes <= kInlineBodyBytes &&
                        (past.line == nullptr || past.line->tokens.size() <= kInlineTokens);
  if (only_counts) {
    ApiResult<std::string> counted;
    if (is_short) {
      counted = count_tokens(std::move(read), past);
    } else {
      counted = co_await net::co_spawn(
          context_->text_pool, count_on_pool(std::move(read), std::move(past)), net::use_awaitable);
    }
    if (auto* error = std::get_if<ApiError>(&counted))
      co_return co_await reply(request, error_reply(*error));
    co_return co_await reply(request, json_reply(std::move(std::get<std::string>(counted))));
  }
  ApiResult<PreparedResponse> result;
  if (is_short) {
    result = prepare(context_, std::move(read), past);
  } else {
    result = co_await prepare_on_text_thread(
        context_, prepare_on_pool(context_, std::move(read), std::move(past)));
  }
  if (auto* error = std::get_if<ApiError>(&result))
    co_return co_await reply(request, error_reply(*error));
  // The server may have begun to drain meanwhile.
  if (context_->draining) co_return co_await reply(request, error_reply(not_ready(*context_)));

  auto& prepared = std::get<PreparedResponse>(result);
  const auto record = std::make_shared<CallRecord>();
  record->tenant = request.tenant;
  record->call = std::move(prepared.call);
  record->body_bytes = body_bytes;
  const bool in_background = record->call.responses->background;
  const bool wants_stream = record->call.stream;
  // Its events are kept for whoever asks for them.
  if (in_background) record->call.stream = true;
  std::vector<PreparedPrompt> prompts;
  prompts.push_back(std::move(prepared.prompt));
  auto started = start_call(record, std::move(prompts), nullptr, request.received);
  if (auto* error = std::get_if<ApiError>(&started))
    co_return co_await reply(request, error_reply(*error));
  const auto live = std::move(std::get<std::shared_ptr<LiveCall>>(started));
  if (!in_background) {
    live->set_on_answered([context = context_, record, call = live.get()] {
      const auto& writer = static_cast<const ResponsesWriter&>(call->completion().writer());
      context->responses.keep(*record, writer, nullptr);
    });
    co_return co_await answer_live(live, record, std::move(request));
  }
  const auto run = std::make_shared<ResponseRun>(socket_.get_executor(), record, live);
  context_->responses.add(run);
  net::co_spawn(socket_.get_executor(), drive(context_, run),
                [id = record->id](const std::exception_ptr& exception) {
                  if (exception) logger("http")->error("event=response_failed id={}", id);
                });
  if (wants_stream) co_return co_await stream_run(run, -1, std::move(request));
  HttpReply begun = json_reply(run->writer().object());
  begun.headers.emplace_back("x-request-id", record->id);
  co_return co_await reply(request, std::move(begun));
}

net::awaitable<bool> Session::answer_response(Request request) {
  const std::string id = request.route.parameter;
  const std::shared_ptr<ResponseRun> run = context_->responses.running(request.tenant, id);
  const StoredResponse* stored = nullptr;
  if (run == nullptr) stored = context_->responses.store().find(request.tenant, id);
  if (run == nullptr && stored == nullptr)
    co_return co_await reply(request, error_reply(no_such_response(id)));
  switch (request.route.endpoint) {
    case Endpoint::kResponseDelete:
      context_->responses.erase(request.tenant, id);
      co_return co_await reply(request, json_reply(deleted_body(id)));
    case Endpoint::kResponseCancel: {
      if (run != nullptr) {
        context_->responses.cancel(run);
        co_return co_await reply(request, json_reply(run->writer().object()));
      }
      if (!stored->background) {
        co_return co_await reply(
            request, error_reply(invalid_field("response_id",
                                               "response `" + id +
                                                   "` was not made with `background`: true; only "
                                                   "such a one can be cancelled")));
      }
      co_return co_await reply(request, json_reply(stored->body));
    }
    case Endpoint::kResponseItems: {
      const auto page = parse_items_page(request.head.query);
      if (const auto* error = std::get_if<ApiError>(&page))
        co_return co_await reply(request, error_reply(*error));
      const Items items = run != nullptr ? input_items(*run->record()) : stored->input;
      auto body = items_body(items, std::get<ItemsPage>(page));
      if (const auto* error = std::get_if<ApiError>(&body))
        co_return co_await reply(request, error_reply(*error));
      co_return co_await reply(request, json_reply(std::move(std::get<std::string>(body))));
    }
    default:
      break;
  }
  const auto parsed = parse_response_view(request.head.query);
  if (const auto* error = std::get_if<ApiError>(&parsed))
    co_return co_await reply(request, error_reply(*error));
  const auto& view = std::get<ResponseView>(parsed);
  if (!view.stream) {
    // A choice in the call below is made before its condition by GCC 12.
    std::string object = stored != nullptr ? stored->body : run->writer().object();
    co_return co_await reply(request, json_reply(std::move(object)));
  }
  if (stored != nullptr && !stored->background) {
    co_return co_await reply(
        request,
        error_reply(invalid_field("stream", "`stream` is true, but response `" + id +
                                                "` was not made with `background`: true; only of "
                                                "such a one the events are kept")));
  }
  ReplyMode mode = mode_for(request.head);
  if (run != nullptr && !mode.head_only)
    co_return co_await stream_run(run, view.starting_after, std::move(request));
  if (mode.http_1_0) mode.keep_alive = false;  // the end of the body is the connection's
  std::string bytes = stream_head(mode, id);
  if (!mode.head_only) {
    bytes += stream_chunk(
        mode, stored->events.substr(events_after(stored->event_ends, view.starting_after)));
    bytes += stream_end(mode);
  }
  const bool written = co_await write(std::move(bytes));
  count(request, written ? 200 : kClientClosed);
  co_return written&& mode.keep_alive;
}

net::awaitable<bool> Session::stream_run(std::shared_ptr<ResponseRun> run, std::int64_t after,
                                         Request request) {
  ReplyMode mode = mode_for(request.head);
  if (mode.http_1_0) mode.keep_alive = false;  // the end of the body is the connection's
  std::string bytes = stream_head(mode, run->record()->id);
  followed_ = run;
  std::int64_t last = after;
  for (;;) {
    const auto num_events = static_cast<std::int64_t>(run->event_ends().size());
    const bool ended = run->ended();
    if (num_events > last + 1) {
      bytes += stream_chunk(mode, run->events().substr(events_after(run->event_ends(), last)));
      last = num_events - 1;
    }
    if (ended) bytes += stream_end(mode);
    if (!bytes.empty() && !co_await write(std::exchange(bytes, {}))) break;
    if (ended) {
      followed_ = nullptr;
      count(request, 200);
      co_return mode.keep_alive;
    }
    // More may have come while it was written.
    const bool is_current = static_cast<std::int64_t>(run->event_ends().size()) <= last + 1;
    if (followed_ != nullptr && !run->ended() && is_current) co_await run->wait();
    if (followed_ == nullptr) break;  // the client hung up
  }
  followed_ = nullptr;
  count(request, kClientClosed);
  co_return false;
}

}  // namespace thaw::coalescer
