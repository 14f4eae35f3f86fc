#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <thread>
#include <vector>

#include "engine/base/result.h"
#include "engine/base/types.h"
#include "engine/grammar/grammar.h"

namespace thaw::scheduler {

/// A sequence's grammar: where its text is, and what may come next.
struct Constraint {
  std::unique_ptr<grammar::Matcher> matcher;
  std::vector<std::uint32_t> mask;  ///< grammar::mask_words() of the vocabulary
  std::uint32_t filled_at = 0;  ///< tokens of the sequence that `mask` follows; 0: not filled
  std::optional<Error> error;  ///< of the last fill
};

/// One mask to fill.
struct MaskJob {
  Constraint* constraint = nullptr;
  std::uint32_t num_tokens = 0;  ///< of the sequence; at least 1
  /// Barred as long as anything else may come: text shall go on where it could end.
  std::span<const TokenId> barred_stops;
};

/// Fills masks on a thread of its own while the caller's works on something else, a forward pass.
/// One caller.
class MaskFiller {
 public:
  MaskFiller() = default;
  ~MaskFiller() = default;  // REQUIRES: finish()
  MaskFiller(const MaskFiller&) = delete;
  MaskFiller& operator=(const MaskFiller&) = delete;

  /// Begins; what the jobs point to must stay until finish().
  void start(std::span<const MaskJob> jobs);
  /// Helps, and returns once all are filled.
  void finish();
  /// One mask at once, on the caller's thread.
  void fill(const MaskJob& job);

  std::uint64_t num_filled() const { return num_filled_; }
  /// Time that the caller spent in finish() and fill(): what masks cost a step.
  std::uint64_t waited_us() const { return waited_ns_ / 1000; }

 private:
  void run(const std::stop_token& stop);
  const MaskJob* next_job();  ///< with the mutex held

  std::mutex mutex_;
  std::condition_variable_any begun_;
  std::condition_variable ended_;
  std::vector<MaskJob> jobs_;
  std::size_t next_ = 0;
  std::size_t num_running_ = 0;  ///< on the helper
  std::uint64_t num_filled_ = 0;
  std::uint64_t waited_ns_ = 0;
  std::jthread helper_;  ///< once there was a job
};

}  // namespace thaw::scheduler
