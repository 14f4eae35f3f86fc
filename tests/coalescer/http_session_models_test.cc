// Sessions where several models are served: each is bound to its model, its turns run there.

#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/http/model_admin.h"
#include "tests/checkpoint/scratch_folder.h"
#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

constexpr TokenId kMark = 299;

/// ByteCodec of a larger vocabulary, whose chats begin with a token that the other one lacks.
class WideCodec final : public TextCodec {
 public:
  Result<std::vector<TokenId>> encode_chat(const ChatPrompt& prompt) const override {
    auto tokens = bytes_.encode_chat(prompt);
    if (tokens) tokens->insert(tokens->begin(), kMark);
    return tokens;
  }
  Result<std::vector<TokenId>> encode_after(const ChatPrompt& prompt,
                                            std::size_t index) const override {
    return bytes_.encode_after(prompt, index);
  }
  std::vector<TokenId> encode_text(std::string_view text, bool add_special) const override {
    return bytes_.encode_text(text, add_special);
  }
  std::string decode(std::span<const TokenId> tokens, bool keep_special) const override {
    std::vector<TokenId> known(tokens.begin(), tokens.end());
    std::erase(known, kMark);
    return bytes_.decode(known, keep_special);
  }
  std::unique_ptr<TextStream> new_stream(bool keep_special) const override {
    return bytes_.new_stream(keep_special);
  }
  int vocab_size() const override { return kMark + 1; }

 private:
  ByteCodec bytes_;
};

ServedModel made_model(const std::string& name, std::uint32_t max_model_len,
                       std::shared_ptr<const TextCodec> codec, const std::string& weights,
                       int top_k) {
  ServedModel model;
  model.names = {name, name.substr(0, 1)};
  model.max_model_len = max_model_len;
  model.codec = std::move(codec);
  model.weights = weights;
  model.description.default_sampling.top_k = top_k;
  return model;
}

ServedModel narrow_model(const std::string& weights = "narrow weights") {
  return made_model("narrow", 1024, std::make_shared<ByteCodec>(), weights, 7);
}

ServedModel wide_model(const std::string& weights = "wide weights") {
  return made_model("wide", 2048, std::make_shared<WideCodec>(), weights, 9);
}

std::shared_ptr<ServedModels> models_of(std::vector<ServedModel> all) {
  auto models = std::make_shared<ServedModels>();
  for (ServedModel& model : all)
    EXPECT_TRUE(models->add(std::move(model)));
  return models;
}

std::shared_ptr<ServedModels> narrow_and_wide() {
  return models_of({narrow_model(), wide_model()});
}

struct HttpSessionModelsTest : testing::Test {
  ServerOptions with_directory(const std::string& name = "a") const {
    ServerOptions options;
    options.session_dir = (directory / name).string();
    return options;
  }
  static json ok(const ClientReply& reply) {
    EXPECT_EQ(reply.status, 200) << reply.body;
    return json::parse(reply.body);
  }
  static json error_of(const ClientReply& reply, int status) {
    EXPECT_EQ(reply.status, status) << reply.body;
    return json::parse(reply.body)["error"];
  }
  static json make(RunningServer& server, const std::string& model,
                   const std::string& rest = R"(, "prefill": false)") {
    return ok(server.post(kSessionsPath, R"({"model": ")" + model +
                                             R"(", "messages": [{"role": "user", "content":
                                            "Sixteen tokens and more"}])" +
                                             rest + "}"));
  }
  static std::string turn_body(const json& session, const std::string& rest = "") {
    return R"({"session_id": )" + session["id"].dump() +
           R"(, "messages": [{"role": "user", "content": "go"}])" + rest + "}";
  }
  static std::string path_of(const json& session, const std::string& verb = "") {
    return std::string(kSessionsPath) + "/" + session["id"].get<std::string>() +
           (verb.empty() ? "" : "/" + verb);
  }

  const checkpoint::ScratchFolder scratch;
  const fs::path directory = scratch.path();
  FakeBackend backend;
};

TEST_F(HttpSessionModelsTest, ATurnRunsOnTheSessionsModelWithoutNamingIt) {
  RunningServer server(&backend, narrow_and_wide());
  const json wide = make(server, "w");
  EXPECT_EQ(wide["model"], "w");
  const json narrow = make(server, "narrow");
  EXPECT_EQ(ok(server.post(kChatPath, turn_body(wide)))["model"], "wide");
  GenerateRequest request = backend.wait_for_request(1);
  EXPECT_EQ(request.model, "wide");
  EXPECT_EQ(request.prompt.front(), kMark) << "its own template and vocabulary";
  EXPECT_EQ(request.sampling.top_k, 9) << "and its defaults";
  ok(server.post(kChatPath, turn_body(narrow)));
  request = backend.wait_for_request(2);
  EXPECT_EQ(request.model, "narrow");
  EXPECT_NE(request.prompt.front(), kMark);
  EXPECT_EQ(request.sampling.top_k, 7);
  // By any of its names; not by another's.
  EXPECT_EQ(ok(server.post(kChatPath, turn_body(wide, R"(, "model": "w")")))["model"], "w");
  const json error = error_of(server.post(kChatPath, turn_body(wide, R"(, "model": "n")")), 400);
  EXPECT_EQ(error["param"], "model");
  EXPECT_NE(error["message"].get<std::string>().find("of the model `w`"), std::string::npos)
      << error;
  EXPECT_EQ(error_of(server.post(kChatPath, turn_body(wide, R"(, "model": "x")")), 404)["code"],
            "model_not_found");
  const std::string unknown = R"({"model": "x", "messages": [{"role": "user", "content": "a"}]})";
  EXPECT_EQ(error_of(server.post(kSessionsPath, unknown), 404)["code"], "model_not_found");
  // A body that is too long to be read on the I/O thread goes the same way.
  const std::string stop = '"' + std::string(1000, 's') + '"';
  ok(server.post(kChatPath,
                 turn_body(wide, R"(, "stop": [)" + stop + ", " + stop + ", " + stop + "]")));
  EXPECT_EQ(backend.wait_for_request(4).model, "wide");
}

TEST_F(HttpSessionModelsTest, KvIsComputedKeptForkedAndWrittenAsTheModels) {
  RunningServer server(&backend, narrow_and_wide(), with_directory());
  const json session = make(server, "wide", "");
  EXPECT_EQ(backend.wait_for_request(1).model, "wide") << "the prefill";
  const json children =
      ok(server.post(path_of(session, "fork"), R"({"n": 2, "cut": {"tokens": 20}})"));
  for (const json& child : children["data"])
    EXPECT_EQ(child["model"], "wide");
  ok(server.post(kChatPath, turn_body(children["data"][0])));
  EXPECT_EQ(backend.wait_for_request(2).model, "wide");
  for (const auto& [pin, trunk] : backend.kept())
    EXPECT_EQ(trunk.owner.model, "wide") << pin;
  EXPECT_FALSE(backend.kept().empty());
  const json saved = ok(server.post(path_of(session, "checkpoint"), R"({"name": "here"})"));
  EXPECT_GT(saved["saved"]["kv_tokens"], 0) << saved;
  ok(server.post(path_of(session, "rewind"), R"({"tokens": 18})"));
}

TEST_F(HttpSessionModelsTest, ACompletionOfAnyModelBecomesASessionOfIt) {
  RunningServer server(&backend, narrow_and_wide());
  const json chat = ok(server.post(
      kChatPath,
      R"({"model": "wide", "messages": [{"role": "user", "content": "Sixteen tokens, I say"}]})"));
  const std::string from = R"({"response_id": )" + chat["id"].dump();
  const json session = ok(server.post(kSessionsPath, from + "}"));
  EXPECT_EQ(session["model"], "wide");
  EXPECT_EQ(error_of(server.post(kSessionsPath, from + R"(, "model": "n"})"), 400)["param"],
            "model");
  ok(server.post(kChatPath, turn_body(session)));
  EXPECT_EQ(backend.wait_for_request(2).model, "wide");
}

TEST_F(HttpSessionModelsTest, ARestartFindsTheModelAgainByItsWeights) {
  json session;
  {
    RunningServer server(&backend, narrow_and_wide(), with_directory());
    session = make(server, "w");
    ok(server.post(kChatPath, turn_body(session)));
  }
  {
    // In another order, and under another name.
    ServedModel renamed = wide_model();
    renamed.names = {"large"};
    RunningServer server(&backend, models_of({renamed, narrow_model()}), with_directory());
    EXPECT_EQ(ok(server.get(path_of(session)))["model"], "large");
    ok(server.post(kChatPath, turn_body(session)));
    EXPECT_EQ(backend.wait_for_request(2).model, "large");
  }
  {
    // By its name where the weights are others.
    RunningServer server(&backend, models_of({narrow_model(), wide_model("other")}),
                         with_directory());
    EXPECT_EQ(error_of(server.get(path_of(session)), 404)["code"], "session_not_found")
        << "`large` is the first model then, whose vocabulary is another";
  }
}

TEST_F(HttpSessionModelsTest, AModelThatIsGoneOrReplacedTakesNoTurns) {
  auto models = narrow_and_wide();
  RunningServer server(&backend, models, with_directory());
  const json session = make(server, "wide");
  EXPECT_TRUE(models->remove("wide"));
  const json gone = error_of(server.post(kChatPath, turn_body(session)), 409);
  EXPECT_EQ(gone["code"], "session_model_gone");
  EXPECT_NE(gone["message"].get<std::string>().find("not served any more"), std::string::npos);
  EXPECT_EQ(ok(server.get(path_of(session)))["model"], "wide") << "it can be looked at";
  const json document = ok(server.post(path_of(session, "export"), "{}"))["document"];
  EXPECT_EQ(document["weights"], "wide weights");
  EXPECT_EQ(document["vocab_size"], kMark + 1);
  ASSERT_TRUE(models->add(wide_model("other weights")));
  const json replaced = error_of(server.post(kChatPath, turn_body(session)), 409);
  EXPECT_NE(replaced["message"].get<std::string>().find("other weights"), std::string::npos);
  EXPECT_EQ(backend.num_plans(), 0U);
  // Deleted and imported anew it is a session of what is served under its name now.
  const auto removed = server.ask("DELETE " + path_of(session) +
                                  " HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
  EXPECT_EQ(removed.status, 200);
  ok(server.post("/v1/sessions/import", json{{"document", document}}.dump()));
  ok(server.post(kChatPath, turn_body(session)));
  EXPECT_EQ(backend.wait_for_request(1).model, "wide");
}

/// Gives slots when it is asked to.
class SlotGivingAdmin final : public ModelAdmin {
 public:
  explicit SlotGivingAdmin(FakeBackend* backend) : backend_(backend) {}
  ApiResult<std::monostate> register_model(const std::string&, const std::string&) override {
    return std::monostate();
  }
  ApiResult<bool> unregister_model(const std::string&) override { return false; }
  ApiResult<Loaded> load_model(const std::string& name) override {
    loaded = name;
    backend_->set_trunk_error(std::nullopt);
    return Loaded();
  }
  std::string loaded;

 private:
  FakeBackend* backend_;
};

TEST_F(HttpSessionModelsTest, WrittenKvComesBackWhenItsModelHasASlotAgain) {
  json session;
  {
    RunningServer server(&backend, narrow_and_wide(), with_directory());
    session = make(server, "wide", "");
    ok(server.post(path_of(session, "checkpoint"), "{}"));
  }
  // The fake writes no files.
  const std::string kv = directory / "a" / (session["id"].get<std::string>() + ".thawkv");
  std::ofstream(kv) << "kv";
  std::ofstream(kv + ".meta") << "meta";
  SlotGivingAdmin admin(&backend);
  ServerOptions options = with_directory();
  options.admin = &admin;
  backend.set_trunk_error(make_error(Errc::kUnavailable, "another model has the slot"));
  RunningServer server(&backend, narrow_and_wide(), options);
  ok(server.post(kChatPath, turn_body(session)));
  EXPECT_EQ(admin.loaded, "wide");
  EXPECT_GT(ok(server.get(path_of(session)))["kv"]["tokens"], 0);
}

}  // namespace
}  // namespace thaw::coalescer
