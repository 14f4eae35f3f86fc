#include <cstdio>
#include <exception>

#include <CLI/CLI.hpp>

#include "cli/explain.h"
#include "cli/info.h"
#include "cli/serve.h"
#include "cli/settings.h"
#include "cli/version.h"
#include "forkpool/worker/worker.h"

namespace {

int report(const thaw::Result<void>& result) {
  if (result) return 0;
  std::fprintf(stderr, "thaw: %s\n", result.error().message.c_str());
  return 1;
}

int run(int argc, char** argv) {
  CLI::App app(
      "thaw: the fork backend for LLM agents. One prefill of a shared context, exact branches.");
  app.require_subcommand(1);
  app.set_version_flag("--version", std::string("thaw ") + thaw::kVersion);
  app.get_formatter()->column_width(34);

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
  info->add_option("model", info_settings.model,
                   "GGUF file, directory of Hugging Face's files, or org/name in its local cache; "
                   "the default model without one")
      ->envname("THAW_MODEL");
  info->add_flag("--json", info_settings.json, "Print JSON");

  CLI::App* version = app.add_subcommand("version", "Print the version");
  CLI::App* worker =
      app.add_subcommand("worker", "A worker process; started by the server")->group("");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& failure) {
    const int status = app.exit(failure);
    return status == 0 ? 0 : 1;
  }
  if (serve->parsed())
    return report(thaw::cli::run_serve(serve_settings, thaw::cli::model_paths_from_environment()));
  if (info->parsed())
    return report(thaw::cli::run_info(info_settings, thaw::cli::model_paths_from_environment()));
  if (explain->parsed()) return report(thaw::cli::run_explain(explain_settings));
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
