#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "coalescer/openai/tool_form.h"
#include "coalescer/openai/tools.h"

namespace thaw::coalescer {

/// Where the calls that a reader finds go.
class CallSink {
 public:
  virtual ~CallSink() = default;
  /// False where that function cannot be called: the text is no call.
  virtual bool begin_call(std::string_view name) = 0;
  /// More JSON text of the arguments of the call that was begun.
  virtual void add_arguments(std::string_view json) = 0;
  virtual void end_call() = 0;
};

enum class ReadState : std::uint8_t {
  kMore,
  kDone,  ///< the byte was the last one of the calls
  kWrong,  ///< this is no call; the byte was not taken
};

/// Reads the text of calls, a byte at a time, so that it does not matter how the text was cut.
class CallReader {
 public:
  virtual ~CallReader() = default;
  /// REQUIRES: it has said kMore so far.
  virtual ReadState push(char c) = 0;
  /// The text may end here: all calls are whole.
  virtual bool may_end() const = 0;
};

/// The reader of what follows `trigger`, which is one of call_triggers(form); an empty one: of a
/// reply that begins with a call. `sink` and `tools` must outlive it.
std::unique_ptr<CallReader> make_call_reader(ToolForm form, std::string_view trigger,
                                             const std::vector<ToolSpec>* tools, CallSink* sink);

/// The byte with which a reply begins that is a call; 0 where the form has triggers only.
char bare_call_begin(ToolForm form);

}  // namespace thaw::coalescer
