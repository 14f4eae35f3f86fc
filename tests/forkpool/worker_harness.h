#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/unique_fd.h"
#include "forkpool/frame_socket.h"
#include "forkpool/protocol.h"

namespace thaw::forkpool::test {

/// What one request came to.
struct Outcome {
  std::vector<TokenId> tokens;  ///< of choice 0
  std::size_t first_index = 0;  ///< of the first of them: what a resumed one already had
  std::optional<FinishReason> reason;
  std::optional<Usage> usage;
  std::optional<Error> error;

  bool ended() const { return usage.has_value() || error.has_value(); }
};

/// A worker in a process of its own (this test binary, run with --worker), with the pool's half of
/// the protocol in the test's hands. Keeps the ledger of published blocks as the pool does and
/// fails the test where two of them share a block.
class DrivenWorker {
 public:
  struct Memory {
    int weights = -1;
    int kv_pool = -1;
    int arena = -1;
  };

  /// Starts the process and sends Init and Adopt.
  DrivenWorker(const Memory& memory, const InitFrame& init, const AdoptFrame& adopt = {});
  /// Starts the process only.
  explicit DrivenWorker(const Memory& memory);
  /// Kills what is left.
  ~DrivenWorker();
  DrivenWorker(const DrivenWorker&) = delete;
  DrivenWorker& operator=(const DrivenWorker&) = delete;

  void send(const Frame& frame);
  void send_bytes(const std::string& bytes);
  /// The next frame, its effect on ledger, stats and outcomes noted; nullopt at the end of file.
  /// Fails the test and returns nullopt after a minute.
  std::optional<Frame> receive();
  /// Receives until `done`; false at the end of file.
  bool receive_until(const std::function<bool()>& done);
  /// Receives until a frame of that kind comes.
  template <typename Kind>
  std::optional<Kind> await() {
    while (auto frame = receive())
      if (auto* wanted = std::get_if<Kind>(&*frame)) return std::move(*wanted);
    return std::nullopt;
  }

  /// Submits and waits for the end of the request.
  Outcome run(GenerateRequest request);

  void signal(int number) const;
  /// Closes the pool's end of the channel.
  void close_channel() { channel_.reset(); }
  /// kill -9; then reads what it had still sent, as the pool does. Returns its wait status.
  int kill();
  /// Waits for the process to end by itself, up to a minute. Returns its wait status.
  int wait_exit();

  const EngineStats& stats() const { return stats_; }
  std::map<RequestId, Outcome>& outcomes() { return outcomes_; }
  /// What the worker has published and not evicted, parents before children.
  AdoptFrame ledger() const;
  /// The ledger of the process before this one, whose blocks this one has adopted.
  void assume_published(const AdoptFrame& ledger) { published_ = ledger.blocks; }

 private:
  void spawn(const Memory& memory);
  void note(const Frame& frame);

  pid_t pid_ = -1;
  UniqueFd channel_;
  FrameDecoder decoder_;
  EngineStats stats_;
  std::map<RequestId, Outcome> outcomes_;
  std::vector<BlockEntry> published_;  ///< in order of publication
};

}  // namespace thaw::forkpool::test
