// Operators change what is served; nobody else does.

#include <mutex>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/http/model_admin.h"
#include "coalescer/openai/admin_bodies.h"
#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

constexpr const char* kSnapshots = "/admin/snapshots";

ServedModel served(const std::string& name, const std::string& path) {
  ServedModel model;
  model.names = {name};
  model.max_model_len = 64;
  model.codec = std::make_shared<ByteCodec>();
  model.path = path;
  return model;
}

/// Paths below /ok are models; others are refused with the status that they name.
class FakeAdmin final : public ModelAdmin {
 public:
  explicit FakeAdmin(std::shared_ptr<ServedModels> models) : models_(std::move(models)) {}

  ApiResult<std::monostate> register_model(const std::string& name,
                                           const std::string& path) override {
    if (!path.starts_with("/ok/")) {
      ApiError error = invalid_field("path", path + " is refused");
      error.status = std::stoi(path);
      return error;
    }
    if (auto added = models_->add(served(name, path)); !added) return to_api_error(added.error());
    return std::monostate();
  }
  ApiResult<bool> unregister_model(const std::string& name) override {
    return models_->remove(name);
  }
  ApiResult<Loaded> load_model(const std::string& name) override {
    const auto model = require_model(*models_, name);
    if (const auto* error = std::get_if<ApiError>(&model)) return *error;
    return Loaded{2.0, 4'000'000'000};
  }

 private:
  std::shared_ptr<ServedModels> models_;
};

struct Bed {
  explicit Bed(ServerOptions options = {}, bool with_admin = true) : admin(models) {
    EXPECT_TRUE(models->add(served("first", "/models/first.gguf")));
    if (with_admin) options.admin = &admin;
    server = std::make_unique<RunningServer>(&backend, models, std::move(options));
  }
  json error(const ClientReply& reply) { return json::parse(reply.body)["error"]; }

  std::shared_ptr<ServedModels> models = std::make_shared<ServedModels>();
  FakeAdmin admin;
  FakeBackend backend;
  std::unique_ptr<RunningServer> server;
};

TEST(HttpAdmin, ModelsComeAndGo) {
  Bed bed;
  auto reply = bed.server->post(kSnapshots, R"({"name": "new", "path": "/ok/new.gguf"})");
  EXPECT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(json::parse(reply.body),
            (json{{"status", "registered"}, {"model", "new"}, {"snapshot", "/ok/new.gguf"}}));
  EXPECT_EQ(bed.server->post("/v1/completions", R"({"model": "new", "prompt": "a"})").status, 200);
  EXPECT_EQ(json::parse(bed.server->get("/v1/models").body)["data"].size(), 2U);
  EXPECT_EQ(json::parse(bed.server->get(kSnapshots).body)["snapshots"],
            (json{{"first", "/models/first.gguf"}, {"new", "/ok/new.gguf"}}));

  // The other project's names for the fields.
  EXPECT_EQ(bed.server->post(kSnapshots, R"({"model": "old", "snapshot": "/ok/old.thaw"})").status,
            200);

  const auto remove = [&](const std::string& name) {
    return bed.server->ask("DELETE /admin/snapshots/" + name +
                           " HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
  };
  reply = remove("new");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(json::parse(reply.body), (json{{"status", "unregistered"}, {"model", "new"}}));
  EXPECT_EQ(bed.server->post("/v1/completions", R"({"model": "new", "prompt": "a"})").status, 404);
  reply = remove("ne%77");
  EXPECT_EQ(reply.status, 200);
  EXPECT_EQ(json::parse(reply.body)["status"], "unknown");
}

TEST(HttpAdmin, BadInputsSayWhatIsWrong) {
  Bed bed;
  const auto refused = [&](const std::string& body, int status, const std::string& param,
                           const std::string& why) {
    const auto reply = bed.server->post(kSnapshots, body);
    EXPECT_EQ(reply.status, status) << body << reply.body;
    const json error = bed.error(reply);
    if (!param.empty()) {
      EXPECT_EQ(error["param"], param) << error;
    }
    EXPECT_NE(error["message"].get<std::string>().find(why), std::string::npos) << error;
  };
  refused("", 422, "", "");
  refused("[]", 422, "", "");
  refused("{", 422, "", "");
  refused(R"({"path": "/ok/a"})", 400, "name", "missing");
  refused(R"({"name": "a"})", 400, "path", "missing");
  refused(R"({"name": "", "path": "/ok/a"})", 400, "name", "1 to 200");
  refused(R"({"name": 7, "path": "/ok/a"})", 400, "name", "a string");
  refused(R"({"name": "a", "path": ["/ok/a"]})", 400, "path", "a string");
  refused(R"({"name": "a\n", "path": "/ok/a"})", 400, "name", "control");
  refused(R"({"name": ")" + std::string(201, 'a') + R"(", "path": "/ok/a"})", 400, "name", "200");
  refused(R"({"name": "a", "path": "/ok/\u0000a"})", 400, "path", "zero");
  refused(R"({"name": "first", "path": "/ok/a"})", 400, "", "served already");
  refused(R"({"name": "a", "path": "403"})", 403, "path", "refused");
  refused(R"({"name": "a", "path": "404"})", 404, "path", "refused");
  EXPECT_EQ(bed.models->list().size(), 1U);
}

TEST(HttpAdmin, OnlyTheMethodsThatThereAre) {
  Bed bed;
  const auto ask = [&](const std::string& method, const std::string& path) {
    return bed.server->ask(method + " " + path + " HTTP/1.1\r\nHost: a\r\n\r\n");
  };
  auto reply = ask("DELETE", kSnapshots);
  EXPECT_EQ(reply.status, 405);
  EXPECT_EQ(reply.headers["allow"], "GET, HEAD, POST");
  reply = ask("GET", "/admin/snapshots/first");
  EXPECT_EQ(reply.status, 405);
  EXPECT_EQ(reply.headers["allow"], "DELETE");
  EXPECT_EQ(ask("GET", "/admin/preload").status, 405);
  EXPECT_EQ(ask("GET", "/admin/snapshots/").status, 404);
  EXPECT_EQ(bed.models->list().size(), 1U);
}

TEST(HttpAdmin, KeysMustBeAnAdminsToChangeAnything) {
  ServerOptions options;
  options.api_keys = {{"k-user", "user"}, {"k-admin", "ops"}};
  options.admin_tenants = {"ops"};
  Bed bed(options);
  const std::string body = R"({"name": "a", "path": "/ok/a"})";
  const auto key = [](const std::string& name) { return "Authorization: Bearer " + name + "\r\n"; };
  EXPECT_EQ(bed.server->post(kSnapshots, body).status, 401);
  EXPECT_EQ(bed.server->post(kSnapshots, body, key("k-user")).status, 403);
  EXPECT_EQ(bed.server->get(kSnapshots, key("k-user")).status, 403);
  EXPECT_EQ(bed.server->post("/admin/preload", R"({"model": "first"})", key("k-user")).status, 403);
  EXPECT_EQ(
      bed.server
          ->ask("DELETE /admin/snapshots/first HTTP/1.1\r\nHost: a\r\n" + key("k-user") + "\r\n")
          .status,
      403);
  EXPECT_EQ(bed.models->list().size(), 1U);
  EXPECT_EQ(bed.server->post(kSnapshots, body, key("k-admin")).status, 200);

  // What others may see of the pool names no file.
  const auto pool = [&](const std::string& name) {
    return json::parse(bed.server->get("/admin/pool", key(name)).body);
  };
  EXPECT_EQ(pool("k-admin")["registered_models"]["a"], "/ok/a");
  EXPECT_EQ(pool("k-user")["registered_models"]["a"], nullptr);
  EXPECT_EQ(pool("k-user")["registered_models"].size(), 2U);
}

TEST(HttpAdmin, AServerOfOneModelKeepsIt) {
  Bed bed({}, /*with_admin=*/false);
  EXPECT_EQ(bed.server->post(kSnapshots, R"({"name": "a", "path": "/ok/a"})").status, 403);
  EXPECT_EQ(json::parse(bed.server->get(kSnapshots).body)["snapshots"].size(), 1U);
  const json pool = json::parse(bed.server->get("/admin/pool").body);
  EXPECT_EQ(pool["base_model"], "first");
  EXPECT_EQ(pool["pool_size"], 1);
  EXPECT_EQ(pool["tensor_parallel_size"], 1);
  EXPECT_EQ(pool["slots"][0]["model"], "first");
  EXPECT_EQ(pool["slots"][0]["busy"], false);
  EXPECT_EQ(
      json::parse(bed.server->get("/health").body),
      (json{{"status", "ok"}, {"pool_size", 1}, {"idle_slots", 1}, {"registered_models", 1}}));
}

TEST(HttpAdmin, ThePoolTellsOfItsRanks) {
  ServerOptions options;
  options.tensor_parallel = 2;
  Bed bed(std::move(options));
  EXPECT_EQ(json::parse(bed.server->get("/admin/pool").body)["tensor_parallel_size"], 2);
}

TEST(HttpAdmin, LoadingSaysHowLongItTook) {
  Bed bed;
  const auto reply = bed.server->post("/admin/preload", R"({"model": "first"})");
  EXPECT_EQ(json::parse(reply.body), (json{{"status", "preloaded"},
                                           {"model", "first"},
                                           {"slot_id", 0},
                                           {"throughput_gb_s", 2.0},
                                           {"elapsed_s", 2.0}}));
  EXPECT_EQ(bed.server->post("/admin/preload", R"({"model": "z"})").status, 404);
  EXPECT_EQ(bed.server->post("/admin/preload", "{}").status, 400);
  EXPECT_EQ(bed.server->post("/admin/preload", R"({"model": "first", "slot_id": 0})").status, 200);
  const auto none = bed.server->post("/admin/preload", R"({"model": "first", "slot_id": 1})");
  EXPECT_EQ(none.status, 400);
  EXPECT_EQ(bed.error(none)["param"], "slot_id");
  EXPECT_EQ(bed.server->post("/admin/preload", "nothing").status, 422);
}

TEST(HttpAdmin, ThePoolTellsOfSlotsAndModels) {
  Bed bed;
  PoolStatus status = bed.backend.status();
  status.uptime_seconds = 10;
  status.slots.resize(2);
  SlotStatus& slot = status.slots[0];
  slot.state = "serving";
  slot.model = "first";
  slot.running = 2;
  slot.swaps = 3;
  slot.last_swap_seconds = 0.25;
  slot.busy_seconds = 5;
  status.slots[1].slot = 1;
  status.slots[1].state = "empty";
  status.models.resize(2);
  ModelStatus& model = status.models[0];
  model.model = "first";
  model.weight_bytes = 100;
  model.waiting = 1;
  model.requests = 9;
  model.loads = 3;
  status.models[1].model = "b\"d";
  status.models[1].load_failures = 1;
  status.models[1].failure = "no memory";
  status.requests_suspended = 4;
  bed.backend.set_status(status);
  const json pool = json::parse(bed.server->get("/admin/pool").body);
  EXPECT_EQ(pool["pool_size"], 2);
  EXPECT_EQ(pool["slots"][0]["busy"], true);
  EXPECT_EQ(pool["slots"][0]["utilisation"], 0.5);
  EXPECT_EQ(pool["slots"][0]["last_swap_seconds"], 0.25);
  EXPECT_EQ(pool["slots"][1]["model"], nullptr);
  EXPECT_EQ(pool["models"][0]["slot"], 0);
  EXPECT_EQ(pool["models"][0]["loads"], 3);
  EXPECT_EQ(pool["models"][1]["failure"], "no memory");
  EXPECT_EQ(pool["models"][1]["slot"], nullptr);
  EXPECT_EQ(json::parse(bed.server->get("/health").body)["idle_slots"], 1);
  const std::string metrics = bed.server->get("/metrics").body;
  for (const char* line :
       {"thaw_model_requests_total{model=\"first\"} 9", "thaw_model_swaps_total{model=\"first\"} 3",
        "thaw_model_requests_waiting{model=\"first\"} 1",
        "thaw_model_swap_failures_total{model=\"b\\\"d\"} 1",
        "thaw_slot_busy_seconds_total{slot=\"0\"} 5", "thaw_requests_suspended_total 4"})
    EXPECT_NE(metrics.find(std::string(line) + "\n"), std::string::npos) << line;
}

}  // namespace
}  // namespace thaw::coalescer
