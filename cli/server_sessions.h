#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "cli/terminal.h"
#include "engine/base/result.h"

namespace thaw::cli {

/// A running server, and a session of it.
struct ServerAddress {
  std::string url;  ///< http://host:port, with or without /v1
  std::string api_key;
  std::string session;  ///< its id; empty where all are meant
};

struct CheckpointSettings {
  ServerAddress server;
  std::string name;  ///< empty: the server gives it a number
  bool json = false;
};

struct ForkSettings {
  ServerAddress server;
  std::uint32_t count = 1;
  std::optional<std::uint32_t> at_tokens;  ///< cut the children there; nothing: at the end
  std::string checkpoint;  ///< start from this one
  std::vector<std::string> labels;
  bool json = false;
};

struct RewindSettings {
  ServerAddress server;
  std::optional<std::uint32_t> at_tokens;
  std::string checkpoint;
  bool json = false;
};

/// `thaw checkpoint --url`: a named point of a session to come back to.
Result<void> run_server_checkpoint(const CheckpointSettings& settings);
/// `thaw branch --url`: children of a session.
Result<void> run_server_fork(const ForkSettings& settings);
/// `thaw checkout --url`: takes a session back to a checkpoint or a token.
Result<void> run_server_rewind(const RewindSettings& settings);
/// `thaw log --url`: the tree of a session, or of all.
Result<void> run_server_log(const ServerAddress& server, bool json);

/// Trees as /v1/sessions/{id}/tree answers them. Errors: kProtocol where one is none.
Result<std::string> format_session_trees(const Look& look,
                                         const std::vector<nlohmann::json>& trees);

}  // namespace thaw::cli
