#include "kvsnap/store/store.h"

#include <cstring>

namespace thaw::kvsnap {

Result<void> StoredObject::read(std::uint64_t offset, std::span<std::byte> out) const {
  std::size_t filled = 0;
  return stream(offset, out.size(), [&](std::span<const std::byte> bytes) -> Result<void> {
    // No store brings more than it was asked for; this one memcpy must not depend on it.
    if (bytes.size() > out.size() - filled)
      return make_error(Errc::kDataLoss, info_.url + ": more bytes came than were asked for");
    std::memcpy(out.data() + filled, bytes.data(), bytes.size());
    filled += bytes.size();
    return {};
  });
}

}  // namespace thaw::kvsnap
