// The half of Session that changes which models are served.

#include <algorithm>
#include <utility>
#include <variant>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "coalescer/http/model_admin.h"
#include "coalescer/http/session.h"
#include "coalescer/openai/admin_bodies.h"
#include "engine/base/log.h"

namespace thaw::coalescer {
namespace {

namespace net = boost::asio;

ApiError forbidden(std::string message) {
  ApiError error = invalid_field("", std::move(message), "permission_denied");
  error.status = 403;
  return error;
}

/// On the thread for such calls.
net::awaitable<HttpReply> register_on_pool(ModelAdmin* admin, SnapshotRegistration what) {
  const auto done = admin->register_model(what.name, what.path);
  if (const auto* error = std::get_if<ApiError>(&done)) co_return error_reply(*error);
  co_return json_reply(snapshot_body("registered", what.name, what.path));
}

net::awaitable<HttpReply> unregister_on_pool(ModelAdmin* admin, std::string name) {
  const auto done = admin->unregister_model(name);
  if (const auto* error = std::get_if<ApiError>(&done)) co_return error_reply(*error);
  co_return json_reply(snapshot_body(std::get<bool>(done) ? "unregistered" : "unknown", name, ""));
}

net::awaitable<HttpReply> load_on_pool(ModelAdmin* admin, const Backend* backend,
                                       std::string name) {
  const auto done = admin->load_model(name);
  if (const auto* error = std::get_if<ApiError>(&done)) co_return error_reply(*error);
  const auto& loaded = std::get<ModelAdmin::Loaded>(done);
  co_return json_reply(preloaded_body(name, slot_of(backend->status(), name), loaded.seconds,
                                      static_cast<double>(loaded.weight_bytes)));
}

}  // namespace

bool Session::may_administer(const Request& request) const {
  if (context_->options.api_keys.empty()) return true;
  const auto& tenants = context_->options.admin_tenants;
  return std::find(tenants.begin(), tenants.end(), request.tenant) != tenants.end();
}

net::awaitable<HttpReply> Session::admin_reply(Request request) {
  if (!may_administer(request)) {
    co_return error_reply(forbidden(
        "this key may not change what is served; start the server with --admin-tenant and "
        "the name of its tenant"));
  }
  if (request.route.endpoint == Endpoint::kAdminSnapshots)
    co_return json_reply(snapshots_body(*context_->models));
  ModelAdmin* admin = context_->options.admin;
  if (admin == nullptr) {
    co_return error_reply(
        forbidden("this server keeps the model that it was started with; start it with --register "
                  "or --snapshot-dir to serve several"));
  }
  if (context_->draining) {
    co_return error_reply(
        to_api_error(make_error(Errc::kUnavailable, "the server is shutting down")));
  }
  logger("http")->info("event=admin path={} tenant={}", request.head.path, request.tenant);
  const auto run = [&](net::awaitable<HttpReply> work) {
    return net::co_spawn(context_->admin_pool, std::move(work), net::use_awaitable);
  };
  if (request.route.endpoint == Endpoint::kAdminUnregister)
    co_return co_await run(unregister_on_pool(admin, request.route.parameter));
  if (request.route.endpoint == Endpoint::kAdminPreload) {
    const std::size_t num_slots = context_->backend->status().slots.size();
    auto name = parse_preload(request.body, std::max<std::size_t>(num_slots, 1));
    if (const auto* error = std::get_if<ApiError>(&name)) co_return error_reply(*error);
    co_return co_await run(
        load_on_pool(admin, context_->backend, std::move(std::get<std::string>(name))));
  }
  auto what = parse_registration(request.body);
  if (const auto* error = std::get_if<ApiError>(&what)) co_return error_reply(*error);
  co_return co_await run(register_on_pool(admin, std::move(std::get<SnapshotRegistration>(what))));
}

}  // namespace thaw::coalescer
