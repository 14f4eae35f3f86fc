// Several models behind one server: each request is read, planned and answered as its model's.

#include <map>
#include <thread>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;

/// ByteCodec of a larger vocabulary: tokens are bytes plus `shift`.
class ShiftedCodec final : public TextCodec {
 public:
  explicit ShiftedCodec(TokenId shift) : shift_(shift) {}

  Result<std::vector<TokenId>> encode_chat(const ChatPrompt& prompt) const override {
    auto tokens = bytes_.encode_chat(prompt);
    if (tokens) move_by(*tokens, shift_);
    return tokens;
  }
  Result<std::vector<TokenId>> encode_after(const ChatPrompt& prompt,
                                            std::size_t index) const override {
    auto tokens = bytes_.encode_after(prompt, index);
    if (tokens) move_by(*tokens, shift_);
    return tokens;
  }
  std::vector<TokenId> encode_text(std::string_view text, bool /*add_special*/) const override {
    std::vector<TokenId> tokens = byte_tokens(text);
    move_by(tokens, shift_);
    return tokens;
  }
  std::string decode(std::span<const TokenId> tokens, bool keep_special) const override {
    std::vector<TokenId> plain(tokens.begin(), tokens.end());
    move_by(plain, -shift_);
    return bytes_.decode(plain, keep_special);
  }
  std::unique_ptr<TextStream> new_stream(bool keep_special) const override {
    return bytes_.new_stream(keep_special);
  }
  int vocab_size() const override { return bytes_.vocab_size() + shift_; }

 private:
  static void move_by(std::vector<TokenId>& tokens, TokenId shift) {
    for (TokenId& token : tokens)
      token += shift;
  }
  ByteCodec bytes_;
  TokenId shift_;
};

ServedModel served(std::vector<std::string> names, TokenId shift, std::uint32_t max_model_len) {
  ServedModel model;
  model.names = std::move(names);
  model.max_model_len = max_model_len;
  model.codec = std::make_shared<ShiftedCodec>(shift);
  model.created = 1700000000;
  return model;
}

std::shared_ptr<ServedModels> two_models() {
  auto models = std::make_shared<ServedModels>();
  ServedModel first = served({"first", "one"}, 0, 64);
  first.description.family = "llama";
  first.description.default_sampling.top_k = 7;
  ServedModel second = served({"second"}, 1000, 128);
  second.description.family = "qwen3";
  second.description.default_sampling.top_k = 9;
  EXPECT_TRUE(models->add(std::move(first)));
  EXPECT_TRUE(models->add(std::move(second)));
  return models;
}

json ask(RunningServer& server, const std::string& model, const std::string& rest = "") {
  const std::string name = model.empty() ? "" : R"("model": ")" + model + R"(", )";
  const auto reply = server.post(kTextPath, "{" + name + R"("prompt": "ab")" + rest + "}");
  EXPECT_EQ(reply.status, 200) << reply.body;
  return json::parse(reply.body);
}

TEST(HttpModels, TheNameChoosesCodecDefaultsAndContext) {
  FakeBackend backend;
  RunningServer server(&backend, two_models());
  EXPECT_EQ(ask(server, "")["model"], "first");
  GenerateRequest request = backend.wait_for_request(1);
  EXPECT_EQ(request.model, "first");
  EXPECT_EQ(request.prompt, (std::vector<TokenId>{97, 98}));
  EXPECT_EQ(request.sampling.top_k, 7);

  EXPECT_EQ(ask(server, "one")["model"], "one");
  EXPECT_EQ(backend.wait_for_request(2).model, "first") << "aliases share one cache";

  EXPECT_EQ(ask(server, "second")["model"], "second");
  request = backend.wait_for_request(3);
  EXPECT_EQ(request.model, "second");
  EXPECT_EQ(request.prompt, (std::vector<TokenId>{1097, 1098}));
  EXPECT_EQ(request.sampling.top_k, 9);

  // 100 tokens more fit into the second one only; a token id above the first one's vocabulary too.
  const std::string long_answer = R"(, "max_tokens": 100)";
  EXPECT_EQ(server.post(kTextPath, R"({"model": "one", "prompt": "ab")" + long_answer + "}").status,
            400);
  ask(server, "second", long_answer);
  const std::string biased = R"(, "logit_bias": {"1200": 1})";
  EXPECT_EQ(server.post(kTextPath, R"({"prompt": "ab")" + biased + "}").status, 400);
  ask(server, "second", biased);
}

TEST(HttpModels, AnUnknownNameListsWhatIsServed) {
  FakeBackend backend;
  RunningServer server(&backend, two_models());
  for (const char* path : {kTextPath, "/v1/chat/completions", "/tokenize", "/detokenize"}) {
    const auto reply = server.post(
        path, R"({"model": "third", "prompt": "a", "messages": [{"role": "user", "content": "a"}],
                  "tokens": [97]})");
    EXPECT_EQ(reply.status, 404) << path;
    const json error = json::parse(reply.body)["error"];
    EXPECT_EQ(error["code"], "model_not_found");
    EXPECT_NE(error["message"].get<std::string>().find("`first`, `second` are"), std::string::npos)
        << error;
  }
  EXPECT_EQ(server.get("/v1/models/third").status, 404);
  EXPECT_EQ(backend.num_plans(), 0U);
}

TEST(HttpModels, EveryNameIsListedAsWhatItIs) {
  FakeBackend backend;
  RunningServer server(&backend, two_models());
  const json models = json::parse(server.get("/v1/models").body)["data"];
  ASSERT_EQ(models.size(), 3U);
  EXPECT_EQ(models[0]["id"], "first");
  EXPECT_EQ(models[1]["id"], "one");
  EXPECT_EQ(models[1]["family"], "llama");
  EXPECT_EQ(models[2]["id"], "second");
  EXPECT_EQ(models[2]["family"], "qwen3");
  EXPECT_EQ(models[2]["max_model_len"], 128);
  EXPECT_EQ(models[2]["created"], 1700000000);
  EXPECT_EQ(json::parse(server.get("/v1/models/second").body)["family"], "qwen3");
}

TEST(HttpModels, TokensAreTheModelsOwn) {
  FakeBackend backend;
  RunningServer server(&backend, two_models());
  const auto tokenize = [&](const std::string& model) {
    return json::parse(
        server.post("/tokenize", R"({"model": ")" + model + R"(", "prompt": "ab"})").body);
  };
  EXPECT_EQ(tokenize("first")["tokens"], json::array({97, 98}));
  EXPECT_EQ(tokenize("second")["tokens"], json::array({1097, 1098}));
  EXPECT_EQ(tokenize("second")["max_model_len"], 128);
  EXPECT_EQ(json::parse(server.post("/detokenize", R"({"model": "second", "tokens": [1104, 1105]})")
                            .body)["prompt"],
            "hi");
}

TEST(HttpModels, AWindowNeverGroupsAcrossModels) {
  // The same token ids for both: only the model tells them apart.
  auto models = std::make_shared<ServedModels>();
  ASSERT_TRUE(models->add(served({"first"}, 0, 4096)));
  ASSERT_TRUE(models->add(served({"second"}, 0, 4096)));
  FakeBackend backend;
  ServerOptions options;
  options.window = std::chrono::milliseconds(300);
  options.max_num_seqs = 8;
  RunningServer server(&backend, models, options);
  // A lone request on an idle server would not wait: this one holds the window open for the rest.
  backend.set_automatic(false);
  std::thread opener([&] { server.post(kTextPath, R"({"prompt": "zz"})"); });
  const RequestId first = backend.wait_for_request(1).id;
  std::vector<std::thread> clients;
  for (const char* model : {"first", "second", "first", "second"})
    clients.emplace_back([&server, model] {
      server.post(kTextPath, std::string(R"({"model": ")") + model + R"(", "prompt": "abcdefgh"})");
    });
  backend.wait_for_request(5);
  const std::vector<ForkPlan> plans = backend.plans();
  for (const ForkPlan& plan : plans)
    for (const PlannedRequest& planned : plan.requests)
      backend.emit_end(planned.request.id);
  opener.join();
  for (std::thread& client : clients)
    client.join();
  EXPECT_EQ(plans.front().requests.front().request.id, first);
  std::map<RequestId, std::string> model_of;
  for (const ForkPlan& plan : plans) {
    for (const PlannedRequest& planned : plan.requests) {
      model_of[planned.request.id] = planned.request.model;
      for (const PlannedRequest& other : plan.requests)
        if (planned.request.model != other.request.model && planned.trunk >= 0) {
          EXPECT_NE(planned.trunk, other.trunk);
        }
    }
  }
  // Nor are they compared in words: the tokens of another model mean something else.
  const json windows = json::parse(server.get("/v1/forks/recent").body)["windows"];
  for (const json& window : windows)
    for (const json& request : window["requests"])
      for (const json& other : request["shared_with"])
        EXPECT_EQ(model_of.at(other["request"]), model_of.at(request["request"])) << request;
}

TEST(HttpModels, AnAnswerNamesTheFingerprintOfItsModel) {
  FakeBackend backend;
  RunningServer server(&backend, two_models());
  PoolStatus status = backend.status();
  status.workers.clear();
  WorkerStatus worker;
  worker.ready = true;
  worker.model = "first";
  worker.system_fingerprint = "fp-first";
  status.workers.push_back(worker);
  backend.set_status(status);
  EXPECT_EQ(ask(server, "first")["system_fingerprint"], "fp-first");

  // Not loaded when it is asked for: named once a worker has it.
  backend.set_automatic(false);
  ClientReply reply;
  std::thread client(
      [&] { reply = server.post(kTextPath, R"({"model": "second", "prompt": "a"})"); });
  const RequestId id = backend.wait_for_request(2).id;
  worker.model = "second";
  worker.system_fingerprint = "fp-second";
  status.workers.push_back(worker);
  backend.set_status(status);
  backend.emit(AdmittedEvent{id, 1});
  backend.emit_text(id, "hi");
  backend.emit_end(id);
  client.join();
  EXPECT_EQ(json::parse(reply.body)["system_fingerprint"], "fp-second");
}

TEST(HttpModels, AModelThatIsUnregisteredAnswersWhatItHasTaken) {
  auto models = two_models();
  FakeBackend backend(/*automatic=*/false);
  RunningServer server(&backend, models);
  ClientReply reply;
  std::thread client(
      [&] { reply = server.post(kTextPath, R"({"model": "second", "prompt": "a"})"); });
  const RequestId id = backend.wait_for_request(1).id;
  EXPECT_TRUE(models->remove("second"));
  EXPECT_FALSE(models->remove("second"));
  EXPECT_EQ(server.post(kTextPath, R"({"model": "second", "prompt": "a"})").status, 404);
  backend.emit_text(id, "still");
  backend.emit_end(id);
  client.join();
  EXPECT_EQ(json::parse(reply.body)["choices"][0]["text"], "still");
}

TEST(ServedModels, RefusesWhatCannotBeServed) {
  ServedModels models;
  EXPECT_EQ(models.find(""), nullptr);
  ASSERT_TRUE(models.add(served({"a", "b"}, 0, 64)));
  const auto refused = [&](ServedModel model, const std::string& why) {
    const auto added = models.add(std::move(model));
    ASSERT_FALSE(added);
    EXPECT_EQ(added.error().code, Errc::kInvalidArgument);
    EXPECT_NE(added.error().message.find(why), std::string::npos) << added.error().message;
  };
  refused(served({"c", "b"}, 0, 64), "`b` is served already");
  refused(served({}, 0, 64), "no name");
  refused(served({""}, 0, 64), "empty");
  refused(served({std::string(1025, 'n')}, 0, 64), "has 1025 bytes; at most 1024");
  refused(served({"c"}, 0, 1), "at least 2");
  EXPECT_EQ(models.list().size(), 1U);
  EXPECT_EQ(models.find("")->name(), "a");
  EXPECT_EQ(models.find("b")->name(), "a");
  ASSERT_TRUE(models.add(served({"c"}, 0, 64)));
  EXPECT_TRUE(models.remove("b")) << "any of its names";
  EXPECT_EQ(models.find("")->name(), "c");
}

}  // namespace
}  // namespace thaw::coalescer
