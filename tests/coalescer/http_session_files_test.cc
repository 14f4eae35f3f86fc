// Sessions that outlive their server: the session directory, exports and imports.

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "coalescer/http/session_files.h"
#include "tests/checkpoint/scratch_folder.h"
#include "tests/coalescer/http_client.h"

namespace thaw::coalescer {
namespace {

using nlohmann::json;
namespace fs = std::filesystem;

struct HttpSessionFilesTest : testing::Test {
  ServerOptions options(const std::string& folder = "a") const {
    ServerOptions made;
    made.session_dir = (directory / folder).string();
    made.api_keys = {{"anna-key", "anna"}, {"berta-key", "berta"}};
    return made;
  }
  static ClientReply post(RunningServer& server, const std::string& path, const std::string& body,
                          const std::string& tenant = "anna") {
    return server.post(path, body, "Authorization: Bearer " + tenant + "-key\r\n");
  }
  static ClientReply get(RunningServer& server, const std::string& path) {
    return server.get(path, "Authorization: Bearer anna-key\r\n");
  }
  static json json_of(const ClientReply& reply) {
    if (reply.status != 200) throw std::runtime_error(reply.body);
    return json::parse(reply.body);
  }
  static std::string path_of(const json& session, const std::string& verb = "") {
    return std::string(kSessionsPath) + "/" + session["id"].get<std::string>() +
           (verb.empty() ? "" : "/" + verb);
  }
  static json turn(RunningServer& server, const json& session, const std::string& text) {
    const json body = {{"session_id", session["id"]},
                       {"messages", {{{"role", "user"}, {"content", text}}}}};
    return json_of(post(server, kChatPath, body.dump()));
  }
  static std::vector<std::string> files_in(const fs::path& folder) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder))
      if (entry.is_regular_file() && entry.path().filename() != "lock")
        names.push_back(entry.path().filename().string());
    return names;
  }

  const checkpoint::ScratchFolder scratch;
  const fs::path directory = scratch.path();
  FakeBackend backend;
};

TEST_F(HttpSessionFilesTest, ARestartedServerGoesOn) {
  json session;
  json child;
  std::string before;
  {
    RunningServer server(&backend, options());
    session = json_of(post(server, kSessionsPath, kSessionStart));
    turn(server, session, "x");
    json_of(post(server, path_of(session, "checkpoint"), R"({"name": "one"})"));
    child = json_of(post(server, path_of(session, "fork"), R"({"labels": ["kid"]})"))["data"][0];
    turn(server, child, "y");
    before = get(server, path_of(child) + "?include=messages,token_ids").body;
    server.stop_and_join(std::chrono::milliseconds(0));
  }
  EXPECT_EQ(files_in(directory / "a").size(), 2U);
  FakeBackend next;
  RunningServer server(&next, options());
  json now = json_of(get(server, path_of(child) + "?include=messages,token_ids"));
  json then = json::parse(before);
  for (const char* changed : {"expires_at", "kv"}) {
    now.erase(changed);
    then.erase(changed);
  }
  EXPECT_EQ(now, then);
  EXPECT_EQ(json_of(get(server, path_of(child, "tree")))["nodes"].size(), 2U);
  const std::vector<TokenId> line = now["token_ids"];
  turn(server, child, "z");
  const std::vector<TokenId> prompt = next.wait_for_request(1).prompt;
  ASSERT_GT(prompt.size(), line.size());
  EXPECT_TRUE(std::equal(line.begin(), line.end(), prompt.begin()));
  EXPECT_EQ(json_of(post(server, path_of(session, "rewind"), R"({"checkpoint": "one"})"))["turns"],
            1);
}

TEST_F(HttpSessionFilesTest, KvIsLoadedAtTheFirstUse) {
  json session;
  {
    RunningServer server(&backend, options());
    session = json_of(post(server, kSessionsPath, kSessionStart));
    const json saved = json_of(post(server, path_of(session, "checkpoint"), ""))["saved"];
    EXPECT_EQ(saved["kv_tokens"], 64);
    EXPECT_EQ(saved["kv_bytes"], 64 * 1024);
    EXPECT_TRUE(saved["kv_error"].is_null());
  }
  // As a real backend would have left them.
  const std::string kv = (directory / "a" / session["id"].get<std::string>()).string() + ".thawkv";
  std::ofstream(kv) << "kv";
  std::ofstream(kv + ".meta") << "meta";
  backend.release("session-" + session["id"].get<std::string>());
  RunningServer server(&backend, options());
  json_of(get(server, path_of(session)));
  EXPECT_TRUE(backend.kept().empty());  // looking loads nothing
  json_of(post(server, path_of(session, "fork"), ""));
  const auto kept = backend.kept();
  ASSERT_TRUE(kept.contains("session-" + session["id"].get<std::string>()));
  EXPECT_EQ(json_of(get(server, path_of(session)))["kv"]["tokens"], 64);
  const ClientReply gone =
      server.ask("DELETE " + path_of(session) +
                 " HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer anna-key\r\n\r\n");
  EXPECT_EQ(gone.status, 200);
  server.stop_and_join(std::chrono::milliseconds(0));
  for (const std::string& name : files_in(directory / "a"))
    EXPECT_EQ(name.find(session["id"].get<std::string>()), std::string::npos) << name;
}

TEST_F(HttpSessionFilesTest, DamagedFilesLoseOneSessionOnly) {
  json session;
  {
    RunningServer server(&backend, options());
    session = json_of(post(server, kSessionsPath, kSessionStart));
  }
  const fs::path good = directory / "a" / (session["id"].get<std::string>() + ".json");
  const std::string other(32, 'b');
  fs::copy(good, directory / "a" / (other + ".json"));  // says it is another session
  std::ofstream(directory / "a" / (std::string(32, 'c') + ".json")) << "{";
  fs::create_symlink(good, directory / "a" / (std::string(32, 'd') + ".json"));
  std::ofstream(directory / "a" / "notes.json") << "not ours";
  RunningServer server(&backend, options());
  EXPECT_EQ(json_of(get(server, kSessionsPath))["data"].size(), 1U);
}

TEST_F(HttpSessionFilesTest, ExportAndImportByTheBody) {
  json session;
  json exported;
  {
    RunningServer server(&backend, options());
    session = json_of(post(server, kSessionsPath, kSessionStart));
    turn(server, session, "x");
    exported = json_of(post(server, path_of(session, "export"), ""));
    // It is here already.
    const json again = {{"document", exported["document"]}};
    EXPECT_EQ(post(server, "/v1/sessions/import", again.dump()).status, 409);
  }
  ServerOptions elsewhere;
  FakeBackend other;
  RunningServer server(&other, elsewhere);
  const json body = {{"document", exported["document"]}, {"label", "moved"}};
  const json moved = json_of(server.post("/v1/sessions/import", body.dump()));
  EXPECT_EQ(moved["id"], session["id"]);
  EXPECT_EQ(moved["label"], "moved");
  EXPECT_EQ(moved["turns"], 1);
  EXPECT_EQ(moved["tokens"], exported["document"]["states"][0]["tokens"].size());
  json lie = body;
  lie["document"]["states"][0]["tokens"][0] = 100000;
  const ClientReply refused = server.post("/v1/sessions/import", lie.dump());
  EXPECT_EQ(refused.status, 400);
  EXPECT_EQ(json::parse(refused.body)["error"]["param"], "document.states[0].tokens");
}

TEST_F(HttpSessionFilesTest, ExportAndImportByAFile) {
  RunningServer server(&backend, options());
  const json session = json_of(post(server, kSessionsPath, kSessionStart));
  const json exported = json_of(post(server, path_of(session, "export"), R"({"file": "mine"})"));
  EXPECT_EQ(exported["kv_tokens"], 64);
  EXPECT_EQ(files_in(directory / "a" / "exports"), std::vector<std::string>{"mine.json"});
  EXPECT_EQ(post(server, path_of(session, "export"), R"({"file": "mine"})").status, 400);
  server.ask("DELETE " + path_of(session) +
             " HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer anna-key\r\n\r\n");
  // Another tenant's file is not there.
  EXPECT_EQ(post(server, "/v1/sessions/import", R"({"file": "mine"})", "berta").status, 404);
  const std::string kv = (directory / "a" / "exports" / "mine.thawkv").string();
  std::ofstream(kv) << "kv";
  std::ofstream(kv + ".meta") << "meta";
  const json back = json_of(post(server, "/v1/sessions/import", R"({"file": "mine"})"));
  EXPECT_EQ(back["id"], session["id"]);
  EXPECT_EQ(back["kv"]["tokens"], 64);
}

TEST_F(HttpSessionFilesTest, NothingOutsideTheDirectoryIsReached) {
  RunningServer server(&backend, options());
  const json session = json_of(post(server, kSessionsPath, kSessionStart));
  json_of(post(server, path_of(session, "export"), R"({"file": "mine"})"));
  const fs::path exports = directory / "a" / "exports";
  fs::copy(exports / "mine.json", directory / "secret.json");
  fs::create_symlink(directory / "secret.json", exports / "link.json");
  fs::create_symlink("/dev/zero", exports / "zero.json");
  ASSERT_EQ(::mkfifo((exports / "pipe.json").c_str(), 0600), 0);
  fs::create_directory(exports / "folder.json");
  for (const char* name :
       {"../secret", "../../secret", "/etc/passwd", "..", ".", ".hidden", "a/b", "a\\\\b",
        "mine\\u0000.json", "%2e%2e/secret", "link", "zero", "pipe", "folder"}) {
    const std::string body = R"({"file": ")" + std::string(name) + "\"}";
    const ClientReply import = post(server, "/v1/sessions/import", body);
    EXPECT_EQ(import.status, 400) << name << import.body;
    EXPECT_EQ(json::parse(import.body)["error"]["param"], "file") << name;
    const ClientReply written = post(server, path_of(session, "export"), body);
    EXPECT_EQ(written.status, 400) << name << written.body;
  }
  EXPECT_EQ(post(server, "/v1/sessions/import", R"({"file": "nothing"})").status, 404);
  EXPECT_EQ(
      post(server, path_of(session, "export"), R"({"file": ")" + std::string(200, 'x') + "\"}")
          .status,
      400);
  EXPECT_EQ(files_in(directory), std::vector<std::string>{"secret.json"});
}

TEST_F(HttpSessionFilesTest, ADirectoryHasOneServer) {
  const auto first = SessionFiles::open(options().session_dir);
  ASSERT_TRUE(first) << first.error().message;
  EXPECT_EQ(SessionFiles::open(options().session_dir).error().code, Errc::kUnavailable);
  std::ofstream(directory / "file") << "x";
  EXPECT_EQ(SessionFiles::open((directory / "file").string()).error().code, Errc::kInvalidArgument);
  struct stat facts {};
  ASSERT_EQ(::stat(options().session_dir.c_str(), &facts), 0);
  EXPECT_EQ(facts.st_mode & 0777, 0700U);  // conversations are private
}

}  // namespace
}  // namespace thaw::coalescer
