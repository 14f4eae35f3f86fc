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

/// `manifest` with what its writer says of it.
inline kvsnap::Manifest with_checksums(kvsnap::Manifest manifest, const SnapshotDoneFrame& done) {
  for (std::size_t i = 0; i < manifest.extents.size(); ++i)
    manifest.extents[i].crc32c = done.crc32c.at(i);
  return manifest;
}

}  // namespace thaw::forkpool
