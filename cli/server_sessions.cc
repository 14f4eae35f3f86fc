#include "cli/server_sessions.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <set>
#include <utility>

#include "cli/handle_report.h"
#include "cli/http_get.h"
#include "cli/memory_budget.h"
#include "cli/tree_lines.h"

namespace thaw::cli {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr std::chrono::seconds kTimeout{60};
constexpr std::size_t kPage = 100;
/// Pages of a server that never ends its list.
constexpr std::size_t kMostPages = 10000;

std::string base_of(const ServerAddress& server) {
  std::string base = server.url;
  while (!base.empty() && base.back() == '/')
    base.pop_back();
  return base.ends_with("/v1") ? base + "/sessions" : base + "/v1/sessions";
}

/// An id goes into a path: nothing else may be in it.
Result<std::string> session_url(const ServerAddress& server, const std::string& verb) {
  const bool is_id = server.session.size() == 32 &&
                     server.session.find_first_not_of("0123456789abcdef") == std::string::npos;
  if (!is_id) {
    return make_error(Errc::kInvalidArgument,
                      server.session +
                          " is no session of a server: ids have 32 hex digits; `thaw "
                          "log --url` lists them");
  }
  return base_of(server) + "/" + server.session + (verb.empty() ? "" : "/" + verb);
}

Result<json> parsed(Result<std::string> body) {
  if (!body) return std::move(body).error();
  json value = json::parse(*body, nullptr, false);
  if (value.is_object()) return value;
  return make_error(Errc::kProtocol, "the server's answer is not what a thaw server sends");
}

Result<json> post(const ServerAddress& server, const std::string& verb, const json& body) {
  const auto url = session_url(server, verb);
  if (!url) return url.error();
  return parsed(http_post(*url, body.dump(-1, ' ', false, json::error_handler_t::replace),
                          server.api_key, kTimeout));
}

Result<json> get(const ServerAddress& server, const std::string& url) {
  return parsed(http_get(url, server.api_key, kTimeout));
}

json cut_at(std::uint32_t tokens) {
  return {{"tokens", tokens}};
}

/// Every session of the server, page by page.
Result<std::vector<json>> list_sessions(const ServerAddress& server) {
  std::vector<json> sessions;
  std::string after;
  for (std::size_t page = 0; page < kMostPages; ++page) {
    auto answer = get(server, base_of(server) + "?limit=" + std::to_string(kPage) +
                                  (after.empty() ? "" : "&after=" + after));
    if (!answer) return std::move(answer).error();
    const json& data = (*answer)["data"];
    if (!data.is_array()) return make_error(Errc::kProtocol, "the server lists no sessions");
    for (const json& session : data) {
      if (!session.is_object() || !session.value("id", json()).is_string())
        return make_error(Errc::kProtocol, "the server lists a session without an id");
      sessions.push_back(session);
    }
    if (!answer->value("has_more", false) || data.empty()) break;
    after = sessions.back()["id"].get<std::string>();
  }
  return sessions;
}

/// The tree of one session, or those of all.
Result<std::vector<json>> read_trees(const ServerAddress& server) {
  std::vector<ServerAddress> asked;
  if (!server.session.empty()) {
    asked.push_back(server);
  } else {
    const auto sessions = list_sessions(server);
    if (!sessions) return sessions.error();
    std::set<std::string> ids;
    for (const json& session : *sessions)
      ids.insert(session["id"].get<std::string>());
    for (const json& session : *sessions) {
      const json parent = session.value("parent", json());
      if (parent.is_string() && ids.contains(parent.get<std::string>())) continue;
      asked.push_back({server.url, server.api_key, session["id"].get<std::string>()});
    }
  }
  std::vector<json> trees;
  for (const ServerAddress& one : asked) {
    const auto url = session_url(one, "tree");
    if (!url) return url.error();
    auto tree = get(one, *url);
    // Sessions end while they are listed.
    if (!tree && tree.error().code == Errc::kNotFound && server.session.empty()) continue;
    if (!tree) return std::move(tree).error();
    trees.push_back(*std::move(tree));
  }
  return trees;
}

std::string text_of(const json& object, const char* key) {
  const json value = object.value(key, json());
  return value.is_string() ? value.get<std::string>() : "";
}

std::uint64_t number_of(const json& object, const char* key) {
  const json value = object.value(key, json());
  return value.is_number_unsigned() ? value.get<std::uint64_t>() : 0;
}

std::vector<std::string> session_row(const Look& look, const json& node) {
  const std::string label = text_of(node, "label");
  const json kv = node.value("kv", json::object());
  const std::uint64_t bytes = kv.is_object() ? number_of(kv, "bytes") : 0;
  std::string notes;
  const auto note = [&](const std::string& text) { notes += (notes.empty() ? "" : ", ") + text; };
  if (!text_of(node, "parent").empty()) {
    note("shares " + counted(number_of(node, "shared_tokens"), "token") + " in " +
         counted(number_of(node, "shared_blocks"), "block"));
  }
  const json running = node.value("running", json());
  if (running.is_boolean() && running.get<bool>()) note("running");
  const json checkpoints = node.value("checkpoints", json::array());
  if (checkpoints.is_array() && !checkpoints.empty()) {
    std::string names;
    for (const json& checkpoint : checkpoints)
      if (checkpoint.is_object())
        names += (names.empty() ? "" : " ") + clipped(look, text_of(checkpoint, "name"), 30);
    note("checkpoints " + names);
  }
  return {styled(look, Style::kBold, label.empty() ? "-" : clipped(look, label, 40)),
          styled(look, Style::kId, printable(look, text_of(node, "id"))),
          grouped(number_of(node, "tokens")) + " tok",
          counted(number_of(node, "num_messages"), "message"),
          bytes > 0 ? format_bytes(bytes) + " kept" : "no KV kept",
          styled(look, Style::kShared, notes)};
}

}  // namespace

Result<std::string> format_session_trees(const Look& look, const std::vector<json>& trees) {
  std::vector<TreeNode> nodes;
  std::vector<const json*> shown;
  std::vector<std::size_t> roots;
  for (const json& tree : trees) {
    const json& list = tree.is_object() && tree.contains("nodes") ? tree["nodes"] : tree;
    if (!list.is_array()) return make_error(Errc::kProtocol, "the server's tree has no nodes");
    std::map<std::string, std::size_t> by_id;  // parents come before their children
    for (const json& node : list) {
      if (!node.is_object() || text_of(node, "id").empty())
        return make_error(Errc::kProtocol, "the server's tree has a node without an id");
      const std::size_t index = nodes.size();
      const auto parent = by_id.find(text_of(node, "parent"));
      if (parent == by_id.end()) {
        roots.push_back(index);
      } else {
        nodes[parent->second].children.push_back(index);
      }
      if (!by_id.emplace(text_of(node, "id"), index).second)
        return make_error(Errc::kProtocol, "the server's tree has a node twice");
      nodes.emplace_back();
      shown.push_back(&node);
    }
  }
  Table table({2, 3});
  for (const TreeLine& line : tree_lines(look, nodes, roots)) {
    std::vector<std::string> row = session_row(look, *shown[line.node]);
    row.front() = styled(look, Style::kDim, line.prefix) + row.front();
    table.add(std::move(row));
  }
  return counted(shown.size(), "session") + "\n\n" + table.render();
}

Result<void> run_server_log(const ServerAddress& server, bool as_json) {
  const auto trees = read_trees(server);
  if (!trees) return trees.error();
  if (as_json) {
    print_json({{"trees", *trees}});
    return {};
  }
  if (trees->empty()) {
    std::printf("no sessions at %s\n", server.url.c_str());
    return {};
  }
  const auto text = format_session_trees(look_of_stdout(), *trees);
  if (!text) return text.error();
  std::fputs(text->c_str(), stdout);
  return {};
}

Result<void> run_server_checkpoint(const CheckpointSettings& settings) {
  json body = json::object();
  if (!settings.name.empty()) body["name"] = settings.name;
  const auto answer = post(settings.server, "checkpoint", body);
  if (!answer) return answer.error();
  if (settings.json) {
    print_json(*answer);
    return {};
  }
  const Look look = look_of_stdout();
  std::printf("[thaw] checkpoint %s of %s: %s\n", printable(look, text_of(*answer, "name")).c_str(),
              settings.server.session.c_str(),
              counted(number_of(*answer, "tokens"), "token").c_str());
  return {};
}

Result<void> run_server_fork(const ForkSettings& settings) {
  json body = {{"n", settings.count}};
  if (settings.at_tokens) body["cut"] = cut_at(*settings.at_tokens);
  if (!settings.checkpoint.empty()) body["checkpoint"] = settings.checkpoint;
  if (!settings.labels.empty()) body["labels"] = settings.labels;
  const auto answer = post(settings.server, "fork", body);
  if (!answer) return answer.error();
  if (settings.json) {
    print_json(*answer);
    return {};
  }
  const json children = answer->value("data", json());
  if (!children.is_array()) return make_error(Errc::kProtocol, "the server lists no children");
  const Look look = look_of_stdout();
  for (const json& child : children) {
    if (!child.is_object()) return make_error(Errc::kProtocol, "the server lists no children");
    const std::string label = text_of(child, "label");
    std::printf("[thaw] branched %s to %s%s: %s\n", settings.server.session.c_str(),
                printable(look, text_of(child, "id")).c_str(),
                label.empty() ? "" : (" (" + printable(look, label) + ")").c_str(),
                counted(number_of(child, "tokens"), "token").c_str());
  }
  return {};
}

Result<void> run_server_rewind(const RewindSettings& settings) {
  json body = json::object();
  if (settings.at_tokens) body["tokens"] = *settings.at_tokens;
  if (!settings.checkpoint.empty()) body["checkpoint"] = settings.checkpoint;
  const auto answer = post(settings.server, "rewind", body);
  if (!answer) return answer.error();
  if (settings.json) {
    print_json(*answer);
    return {};
  }
  std::printf("[thaw] %s is back at %s\n", settings.server.session.c_str(),
              counted(number_of(*answer, "tokens"), "token").c_str());
  return {};
}

}  // namespace thaw::cli
