#pragma once

#include <cstddef>

namespace thaw {

// What a call may hold on its way to a worker (docs/protocol.md): the front refuses more by the
// field's name, the protocol by the frame's.

/// Tenant, salt, model, adapter, session, trace: bytes of each.
inline constexpr std::size_t kMaxCallNameBytes = 1024;
inline constexpr std::size_t kMaxGrammarBytes = std::size_t{1} << 20;

}  // namespace thaw
