#pragma once

#include <string>
#include <vector>

#include "forkpool/protocol.h"

namespace thaw::forkpool {

/// "ready admitted ": the names of frames, each with a space behind it.
inline std::string kinds(const std::vector<Frame>& frames) {
  std::string text;
  for (const Frame& frame : frames)
    text += std::string(frame_name(frame)) + " ";
  return text;
}

}  // namespace thaw::forkpool
