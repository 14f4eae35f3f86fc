#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/base/result.h"
#include "engine/cuda/buffer.h"
#include "engine/cuda/stream.h"
#include "engine/model/batch_rows.h"
#include "engine/model/cuda/forward.h"
#include "engine/ops/cuda/attention.h"

namespace thaw::model {

/// Where a step's inputs lie, as 32-bit words from the start: a function of its numbers of rows, so
/// that a graph that was captured for them finds every batch in the same places.
struct StepLayout {
  StepLayout(int num_rows, int num_logit_rows);
  std::size_t ids = 0;
  std::size_t positions = 0;
  std::size_t blocks = 0;
  std::size_t logit_rows = 0;
  std::size_t draws = 0;
  std::size_t tail_positions = 0;  ///< none of both but where goes_on_alone()
  std::size_t tail_blocks = 0;
  std::size_t plan = 0;  ///< the first; each has max_plan_words, and the tail's is the last
};

/// The inputs of steps on their way: two pinned slots that the host fills in turn, one place on the
/// device, one copy a step and one for each further plan. Not thread-safe.
class StepInputs {
 public:
  /// One of `shapes` for each attention plan; `last`: the last layer's. Throws where memory is
  /// short.
  StepInputs(std::vector<ops::cuda::AttentionShape> shapes, int last, const ForwardLimits& limits,
             int max_sequences, cuda::StreamView stream);

  static std::size_t device_bytes(const ForwardLimits& limits, int max_sequences, int num_plans);

  /// Addresses on the device for a step of so many rows.
  ForwardInputs at(int num_rows, int num_logit_rows) const;

  /// Lays `rows` out for `num_rows` and `num_logit_rows` (at least as many as there are; the rest
  /// writes nowhere) in slot `slot` (0 or 1) and enqueues the copy to the device. `ids`: what
  /// resolve_ids takes, one for each row; `draws`: one for each logit row. The slot must not be
  /// filled again before the step is done. Errors: kResourceExhausted where the attention plan has
  /// no room. Throws where the copy fails.
  Result<ForwardInputs> send(const BatchRows& rows, std::span<const std::int32_t> ids,
                             std::span<const ops::cuda::DrawRow> draws, int num_rows,
                             int num_logit_rows, int slot, cuda::StreamView stream);

 private:
  /// Every logit row as a sequence of its own, in their order.
  void lay_out_tail(const BatchRows& rows);

  const std::vector<ops::cuda::AttentionShape> shapes_;
  const int last_;  // of shapes_: the last layer's
  const std::size_t max_partials_;
  const std::size_t max_plan_words_;
  std::array<cuda::PinnedBuffer<std::int32_t>, 2> staging_;
  cuda::DeviceBuffer<std::int32_t> words_;
  std::vector<ops::AttentionSequence> tail_;  // of the step that is being sent: its logit rows
};

}  // namespace thaw::model
