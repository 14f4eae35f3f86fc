#pragma once

#include <optional>
#include <string>

#include <nlohmann/json.hpp>

#include "cli/model_paths.h"
#include "cli/terminal.h"
#include "engine/base/result.h"
#include "engine/text/tokenizer.h"
#include "kvsnap/handle_directory.h"
#include "kvsnap/handle_lineage.h"

namespace thaw::cli {

/// Two handles, what they have in common, and how the prompts read around the place where they
/// part.
struct HandleDiff {
  /// Texts there: of the tokens where a tokenizer is to be had, else of the recorded previews.
  struct Parting {
    std::string shared;  ///< the end of what is the same
    std::string a;  ///< what follows
    std::string b;
    bool from_tokens = false;
    std::string token_a;  ///< text of the first token that differs; empty: not known, or none
    std::string token_b;
  };
  const kvsnap::HandleDirectory* a = nullptr;
  const kvsnap::HandleDirectory* b = nullptr;
  kvsnap::HandleComparison found;
  std::optional<Parting> parting;  ///< nothing: no texts, or they are the same
};

/// `tokenizer`: null where there is none.
HandleDiff diff_handles(const kvsnap::HandleDirectory& a, const kvsnap::HandleDirectory& b,
                        const text::Tokenizer* tokenizer);

nlohmann::ordered_json diff_json(const HandleDiff& diff);
std::string format_diff(const Look& look, const HandleDiff& diff);

struct DiffSettings {
  std::string a;
  std::string b;
  std::string tokenizer;  ///< model whose tokenizer reads the tokens; empty: one that is found
  bool json = false;
};

/// `thaw diff`.
Result<void> run_diff(const DiffSettings& settings, const ModelPaths& paths);

}  // namespace thaw::cli
