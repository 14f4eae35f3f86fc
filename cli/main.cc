#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include "cli/bench.h"
#include "cli/container_report.h"
#include "cli/explain.h"
#include "cli/freeze.h"
#include "cli/info.h"
#include "cli/remote_files.h"
#include "cli/serve.h"
#include "cli/session_commands.h"
#include "cli/settings.h"
#include "cli/terminal.h"
#include "cli/version.h"
#include "forkpool/worker/worker.h"

namespace {

int report(const thaw::Result<void>& result, const char* prefix = "thaw:") {
  if (result) return 0;
  // Names of files and a server's answers are in it: one line, whatever they hold.
  const std::string message = thaw::cli::printable({false, true, 0}, result.error().message);
  std::fprintf(stderr, "%s %s\n", prefix, message.c_str());
  return 1;
}

constexpr const char* kFilesPrefix = "[thaw]";  ///< of commands on files: scripts look for it

/// What was wrong with the arguments, on one line.
std::string usage_error(const CLI::App* app, const CLI::Error& error) {
  std::string text = std::string(kFilesPrefix) + " " + error.what();
  std::replace(text.begin(), text.end(), '\n', ' ');
  return text + "; `" + app->get_name() + " --help` tells more\n";
}

/// -tp is no short flag as CLI11 knows them.
std::vector<std::string> arguments(int argc, char** argv) {
  std::vector<std::string> reversed;
  for (int i = argc - 1; i > 0; --i) {
    std::string argument = argv[i];
    if (argument == "-tp") argument = "--tensor-parallel";
    reversed.push_back(std::move(argument));
  }
  return reversed;
}

int run(int argc, char** argv) {
  CLI::App app(
      "thaw: the fork backend for LLM agents. One prefill of a shared context, exact branches.");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("thaw ") + thaw::kVersion);
  app.get_formatter()->column_width(34);
  app.failure_message(usage_error);

  thaw::cli::ServeSettings serve_settings;
  CLI::App* serve = app.add_subcommand("serve", "Serve a model over HTTP (OpenAI's API)");
  thaw::cli::add_serve_options(*serve, serve_settings);

  thaw::cli::ExplainSettings explain_settings;
  CLI::App* explain = app.add_subcommand(
      "explain", "Why the last requests of a running server shared what they did");
  explain->add_option("request", explain_settings.request,
                      "Only this request (its id in the answer)");
  explain->add_option("--url", explain_settings.url, "The server")
      ->envname("THAW_URL")
      ->capture_default_str();
  explain->add_option("--api-key", explain_settings.api_key, "Key to send")
      ->envname("THAW_API_KEY");
  explain->add_flag("--json", explain_settings.json, "Print the server's JSON");

  thaw::cli::InfoSettings info_settings;
  CLI::App* info =
      app.add_subcommand("info", "What a model is, and what of it is not supported and why");
  info->add_option(
          "model", info_settings.model,
          "GGUF file, directory of Hugging Face's files, org/name in its local cache, or a "
          ".thaw or .thawkv file (s3://BUCKET/KEY too); the default model without one")
      ->envname("THAW_MODEL");
  info->add_flag("--json", info_settings.json, "Print JSON");

  info->add_flag("--verify", info_settings.verify,
                 "Of a .thaw or .thawkv file: compare every payload with its checksum");

  thaw::cli::add_s3_options(*info, info_settings.s3);

  thaw::cli::FreezeSettings freeze_settings;
  CLI::App* freeze = app.add_subcommand(
      "freeze", "Write a model as a .thaw file that holds all it takes to serve it");
  thaw::cli::add_freeze_options(*freeze, freeze_settings);

  const thaw::cli::SessionCommands sessions(app);
  thaw::cli::BenchSettings bench_settings;
  CLI::App* bench = app.add_subcommand("bench", "Measure this machine");
  thaw::cli::add_bench_options(*bench, bench_settings);

  CLI::App* version = app.add_subcommand("version", "Print the version");
  CLI::App* worker =
      app.add_subcommand("worker", "A worker process; started by the server")->group("");

  try {
    app.name(argv[0]);
    app.parse(arguments(argc, argv));
  } catch (const CLI::ParseError& failure) {
    const int status = app.exit(failure);
    return status == 0 ? 0 : 1;
  }
  if (serve->parsed())
    return report(thaw::cli::run_serve(serve_settings, thaw::cli::model_paths_from_environment()),
                  serve_settings.snapshot.empty() && serve_settings.kv_snapshots.empty()
                      ? "thaw:"
                      : kFilesPrefix);
  if (freeze->parsed()) {
    return report(thaw::cli::run_freeze(freeze_settings, thaw::cli::model_paths_from_environment()),
                  kFilesPrefix);
  }
  if (info->parsed())
    return report(
        thaw::cli::run_info(info_settings, thaw::cli::model_paths_from_environment()),
        thaw::cli::is_container(info_settings.model) || thaw::cli::is_remote(info_settings.model)
            ? kFilesPrefix
            : "thaw:");
  if (const auto result = sessions.run(thaw::cli::model_paths_from_environment()))
    return report(*result, kFilesPrefix);
  if (explain->parsed()) return report(thaw::cli::run_explain(explain_settings));
  if (bench->parsed()) return report(thaw::cli::run_bench_gpu(bench_settings));
  if (worker->parsed()) return thaw::forkpool::run_worker();
  if (version->parsed()) std::printf("thaw %s\n", thaw::kVersion);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "thaw: %s\n", failure.what());
    return 1;
  }
}
