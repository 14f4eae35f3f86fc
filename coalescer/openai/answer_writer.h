#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "coalescer/openai/answer.h"
#include "coalescer/openai/call.h"

namespace thaw::coalescer {

/// Writes the answer to one call in the words of its endpoint. Frames of a stream go straight into
/// one string: they are the only JSON that is made for every token. May keep state from frame to
/// frame; the functions are called in the order of the stream. Not thread-safe.
class AnswerWriter {
 public:
  AnswerWriter() = default;
  virtual ~AnswerWriter() = default;
  AnswerWriter(const AnswerWriter&) = delete;
  AnswerWriter& operator=(const AnswerWriter&) = delete;

  /// For a model that was not loaded yet when it was asked for. Before anything is written.
  virtual void set_system_fingerprint(const std::string& fingerprint) = 0;

  /// At admission, before any delta. How many of the prompt's tokens were there already is not
  /// known yet.
  virtual void append_start(std::string& out, std::uint64_t prompt_tokens) = 0;
  /// One step of one choice.
  virtual void append_delta(std::string& out, const Delta& delta) = 0;
  /// Behind the last delta. `explanation`: JSON text, empty for none.
  virtual void append_end(std::string& out, const CompletionUsage& usage,
                          const std::string& explanation) = 0;
  /// What tells a client that reads one answer that its stream ends here; not written where
  /// several answers share a stream.
  virtual void append_done(std::string& out) = 0;
  /// What ends a stream that failed.
  virtual void append_error(std::string& out, const ApiError& error) = 0;

  /// Before body(), where the endpoint's answers say it.
  virtual void set_metadata(const AnswerMetadata& /*metadata*/) {}
  /// The body of an unstreamed answer.
  virtual std::string body(const std::vector<WholeChoice>& choices, const CompletionUsage& usage,
                           const std::string& explanation) = 0;
};

/// The one for the call's kind.
std::unique_ptr<AnswerWriter> make_answer_writer(const ApiCall& call, const CompletionLabel& label);

}  // namespace thaw::coalescer
