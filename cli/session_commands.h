#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include <CLI/CLI.hpp>

#include "cli/model_paths.h"
#include "engine/base/result.h"

namespace thaw::cli {

/// The verbs on sessions and rollouts: log, inspect, diff, checkpoint, branch, checkout, rewind.
/// They need no GPU and no model. Must outlive the parse.
class SessionCommands {
 public:
  /// Declares the verbs on `app`.
  explicit SessionCommands(CLI::App& app);

  /// Runs the verb that was parsed; nothing where it was another command.
  std::optional<Result<void>> run(const ModelPaths& paths) const;

 private:
  using Run = std::function<Result<void>(const ModelPaths&)>;
  void add_inspect(CLI::App& app);
  void add_diff(CLI::App& app);
  void add_log(CLI::App& app);
  void add_checkpoint(CLI::App& app);
  void add_branch(CLI::App& app);
  void add_checkout(CLI::App& app);
  void add_rewind(CLI::App& app);

  struct Verb {
    CLI::App* command = nullptr;
    Run run;
  };
  std::vector<Verb> verbs_;
};

}  // namespace thaw::cli
