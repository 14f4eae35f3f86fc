#pragma once

#include <cstdint>
#include <string>

namespace thaw::kvsnap {

/// Why TLS handshakes failed, from the client library's log. Its own report comes too late: s2n
/// holds a failed connection for up to half a minute, so that nobody learns from the time, and the
/// library tries five more.
struct TlsFailures {
  std::uint64_t count = 0;
  std::string last;  ///< such as "Certificate is untrusted"
};

/// From here on, for the whole process. Call once.
void watch_tls();

TlsFailures tls_failures();

}  // namespace thaw::kvsnap
