#include "cli/session_commands.h"

#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>

#include "cli/handle_checkpoint.h"
#include "cli/handle_copy.h"
#include "cli/handle_diff.h"
#include "cli/handle_log.h"
#include "cli/handle_report.h"
#include "cli/rewind.h"
#include "cli/rewind_drift.h"
#include "cli/rewind_pivot.h"
#include "cli/server_sessions.h"

namespace thaw::cli {
namespace {

constexpr const char* kHandleHelp = "A handle's directory, or its handle.json";
constexpr const char* kFiles = "On files";
constexpr const char* kServer = "On a running server";

void add_json(CLI::App& command, bool& json) {
  command.add_flag("--json", json, "Print JSON (docs/cli.md names its keys)");
}

CLI::Option* add_server(CLI::App& command, ServerAddress& server) {
  CLI::Option* url =
      command.add_option("--url", server.url, "The server, such as http://127.0.0.1:8000")
          ->group(kServer);
  command.add_option("--api-key", server.api_key, "Key to send")
      ->envname("THAW_API_KEY")
      ->group(kServer);
  return url;
}

/// What branch and checkout both take of files.
void add_copy_options(CLI::App& command, CopySettings& settings, CLI::Option* url) {
  command
      .add_flag("--description-only", settings.description_only,
                "Leave blocks and weights out: enough for log and diff")
      ->group(kFiles)
      ->excludes(url);
  // Has no flag, as of serve: what is not compared can be damaged in silence.
  const char* verify = std::getenv("THAW_VERIFY");
  settings.verify = verify == nullptr || std::string_view(verify) != "0";
  add_json(command, settings.json);
}

Error missing(const char* what) {
  return make_error(Errc::kInvalidArgument,
                    std::string(what) + " is required; or name a server with --url");
}

Error not_on_server(const std::string& target) {
  return make_error(Errc::kInvalidArgument, target +
                                                ": with --url there is no directory to write to; "
                                                "leave it out");
}

}  // namespace

SessionCommands::SessionCommands(CLI::App& app) {
  add_log(app);
  add_inspect(app);
  add_diff(app);
  add_checkpoint(app);
  add_branch(app);
  add_checkout(app);
  add_rewind(app);
}

std::optional<Result<void>> SessionCommands::run(const ModelPaths& paths) const {
  for (const Verb& verb : verbs_)
    if (verb.command->parsed()) return verb.run(paths);
  return std::nullopt;
}

void SessionCommands::add_inspect(CLI::App& app) {
  const auto settings = std::make_shared<InspectSettings>();
  CLI::App* command = app.add_subcommand("inspect", "What a saved session holds");
  command->add_option("handle", settings->handle, kHandleHelp)->required();
  command->add_flag("--verify", settings->verify, "Compare every payload with its checksum");
  add_json(*command, settings->json);
  verbs_.push_back({command, [settings](const ModelPaths&) { return run_inspect(*settings); }});
}

void SessionCommands::add_diff(CLI::App& app) {
  const auto settings = std::make_shared<DiffSettings>();
  CLI::App* command = app.add_subcommand(
      "diff", "What two saved sessions share, where they part, and how they read there");
  command->add_option("a", settings->a, kHandleHelp)->required();
  command->add_option("b", settings->b, "Another one")->required();
  command->add_option("--tokenizer", settings->tokenizer,
                      "Model whose tokenizer reads the tokens, as serve takes it; without it, that "
                      "of the weights in a handle, or of its model in the local cache");
  add_json(*command, settings->json);
  verbs_.push_back(
      {command, [settings](const ModelPaths& paths) { return run_diff(*settings, paths); }});
}

void SessionCommands::add_log(CLI::App& app) {
  struct Settings {
    LogSettings files;
    ServerAddress server;
  };
  const auto settings = std::make_shared<Settings>();
  CLI::App* command = app.add_subcommand(
      "log", "The tree of sessions: tokens, bytes, shared blocks; of files or of a server");
  command->add_option("root", settings->files.root,
                      "Directory that holds handles, or one handle; with --url a session's id");
  add_server(*command, settings->server);
  add_json(*command, settings->files.json);
  verbs_.push_back({command, [settings](const ModelPaths&) -> Result<void> {
                      if (!settings->server.url.empty()) {
                        settings->server.session = settings->files.root;
                        return run_server_log(settings->server, settings->files.json);
                      }
                      if (settings->files.root.empty()) return missing("root");
                      return run_log(settings->files);
                    }});
}

void SessionCommands::add_checkpoint(CLI::App& app) {
  struct Settings {
    MakeHandleSettings files;
    CheckpointSettings server;
  };
  const auto settings = std::make_shared<Settings>();
  CLI::App* command = app.add_subcommand(
      "checkpoint", "Make a handle of a .thawkv file, or name a point of a server's session");
  command->add_option("source", settings->files.kv, "A .thawkv file; with --url a session's id")
      ->required();
  command->add_option("target", settings->files.target, "Directory to make");
  CLI::Option* url = add_server(*command, settings->server.server);
  command->add_option("--name", settings->server.name, "Name of the checkpoint; else a number")
      ->group(kServer)
      ->needs(url);
  command
      ->add_option("--model", settings->files.model, "Whose KV it is, where the file does not say")
      ->group(kFiles)
      ->excludes(url);
  command->add_option("--parent", settings->files.parent, "Handle that this one continues")
      ->group(kFiles)
      ->excludes(url);
  command->add_option("--label", settings->files.label, "Name of the handle")
      ->group(kFiles)
      ->excludes(url);
  add_json(*command, settings->files.json);
  verbs_.push_back({command, [settings](const ModelPaths&) -> Result<void> {
                      CheckpointSettings& server = settings->server;
                      if (server.server.url.empty()) {
                        if (settings->files.target.empty()) return missing("target");
                        return run_make_handle(settings->files);
                      }
                      if (!settings->files.target.empty())
                        return not_on_server(settings->files.target);
                      server.server.session = settings->files.kv;
                      server.json = settings->files.json;
                      return run_server_checkpoint(server);
                    }});
}

void SessionCommands::add_branch(CLI::App& app) {
  struct Settings {
    CopySettings files;
    ForkSettings server;
  };
  const auto settings = std::make_shared<Settings>();
  CLI::App* command = app.add_subcommand(
      "branch", "A child of a session: in a directory of its own, or on a running server");
  command
      ->add_option("handle", settings->files.handle,
                   std::string(kHandleHelp) + "; with --url a session's id")
      ->required();
  command->add_option("target", settings->files.target, "Directory to make");
  CLI::Option* url = add_server(*command, settings->server.server);
  command->add_option("-n,--count", settings->server.count, "Children to make")
      ->group(kServer)
      ->check(CLI::Range(1U, 4096U))
      ->needs(url);
  command->add_option("--at", settings->server.at_tokens, "Token at which the children part")
      ->group(kServer)
      ->needs(url);
  command->add_option("--checkpoint", settings->server.checkpoint, "Start from this checkpoint")
      ->group(kServer)
      ->needs(url);
  command
      ->add_option("--label", settings->server.labels,
                   "Name of the branch; on a server one for each child")
      ->allow_extra_args(false);
  add_copy_options(*command, settings->files, url);
  verbs_.push_back({command, [settings](const ModelPaths&) -> Result<void> {
                      CopySettings& files = settings->files;
                      ForkSettings& server = settings->server;
                      if (server.server.url.empty()) {
                        if (files.target.empty()) return missing("target");
                        if (server.labels.size() > 1)
                          return make_error(Errc::kInvalidArgument, "a branch has one --label");
                        if (!server.labels.empty()) files.label = server.labels.front();
                        return run_branch(files);
                      }
                      if (!files.target.empty()) return not_on_server(files.target);
                      server.server.session = files.handle;
                      server.json = files.json;
                      return run_server_fork(server);
                    }});
}

void SessionCommands::add_checkout(CLI::App& app) {
  struct Settings {
    CopySettings files;
    RewindSettings server;
  };
  const auto settings = std::make_shared<Settings>();
  CLI::App* command = app.add_subcommand(
      "checkout", "A saved session, checked and copied; or a server's session back at a point");
  command
      ->add_option("handle", settings->files.handle,
                   std::string(kHandleHelp) + "; with --url a session's id")
      ->required();
  command->add_option("target", settings->files.target, "Directory to make");
  CLI::Option* url = add_server(*command, settings->server.server);
  command->add_option("--at", settings->server.at_tokens, "Token to go back to")
      ->group(kServer)
      ->needs(url);
  command->add_option("--checkpoint", settings->server.checkpoint, "Checkpoint to go back to")
      ->group(kServer)
      ->needs(url);
  command->add_option("--label", settings->files.label, "Another name for it")
      ->group(kFiles)
      ->excludes(url);
  add_copy_options(*command, settings->files, url);
  verbs_.push_back({command, [settings](const ModelPaths&) -> Result<void> {
                      CopySettings& files = settings->files;
                      RewindSettings& server = settings->server;
                      if (server.server.url.empty()) {
                        if (files.target.empty()) return missing("target");
                        return run_checkout(files);
                      }
                      if (!files.target.empty()) return not_on_server(files.target);
                      server.server.session = files.handle;
                      server.json = files.json;
                      return run_server_rewind(server);
                    }});
}

void SessionCommands::add_rewind(CLI::App& app) {
  struct Settings {
    std::string a;
    std::string b;
    bool json = false;
  };
  CLI::App* rewind =
      app.add_subcommand("rewind", "Sampled continuations: how likely, and where they part");
  rewind->require_subcommand(1);
  constexpr const char* kRolloutHelp = "A rollout's directory, or its rollout.json";

  const auto one = std::make_shared<Settings>();
  CLI::App* inspect = rewind->add_subcommand("inspect", "What a rollout is and how likely");
  inspect->add_option("rollout", one->a, kRolloutHelp)->required();
  add_json(*inspect, one->json);
  verbs_.push_back(
      {inspect, [one](const ModelPaths&) { return run_rewind_inspect(one->a, one->json); }});

  const auto two = std::make_shared<Settings>();
  CLI::App* diff = rewind->add_subcommand(
      "diff", "Where two rollouts part, and how likely each found the other's token");
  diff->add_option("a", two->a, kRolloutHelp)->required();
  diff->add_option("b", two->b, "Another one")->required();
  add_json(*diff, two->json);
  verbs_.push_back(
      {diff, [two](const ModelPaths&) { return run_rewind_diff(two->a, two->b, two->json); }});

  const auto root = std::make_shared<Settings>();
  CLI::App* pivot = rewind->add_subcommand(
      "pivot", "Where sibling rollouts diverge, which token decided, and which is the likeliest");
  pivot->add_option("root", root->a, "Directory that holds rollouts")->required();
  add_json(*pivot, root->json);
  verbs_.push_back(
      {pivot, [root](const ModelPaths&) { return run_rewind_pivot(root->a, root->json); }});

  const auto results = std::make_shared<Settings>();
  CLI::App* drift = rewind->add_subcommand(
      "drift", "How often re-feeding a prefix flips an advantage's sign, against exact resumes");
  drift->add_option("results", results->a, "File of results, or directory of such")->required();
  add_json(*drift, results->json);
  verbs_.push_back({drift, [results](const ModelPaths&) {
                      return run_rewind_drift(results->a, results->json);
                    }});
}

}  // namespace thaw::cli
