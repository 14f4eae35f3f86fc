#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "engine/base/hash.h"
#include "engine/base/trunk_keeping.h"
#include "forkpool/file_crew.h"
#include "forkpool/transfers.h"
#include "forkpool/trunk_index.h"
#include "kvsnap/arena.h"
#include "kvsnap/file_io.h"
#include "kvsnap/kv_document.h"

namespace thaw::forkpool {

/// The engine whose KV this pool's workers compute; nothing of another is ever read.
struct EngineIdentity {
  Hash128 fingerprint;
  std::string system_fingerprint;
  kvsnap::KvFormat format;

  /// The cache root of what this engine computes for them.
  Hash128 root_of(const TrunkOwner& owner) const {
    return make_cache_root(fingerprint, owner.tenant, owner.cache_salt, owner.adapter);
  }
};

/// Carries trunks between the arena and files, on threads of its own: the loop goes on meanwhile.
/// Whatever is read was compared with its checksums before it is published. Belongs to the loop's
/// thread; every callback is called once, from the loop.
class TrunkFiles {
 public:
  using Written = std::function<void(Result<KeptTrunk>)>;
  using Read = std::function<void(Result<TrunkId>)>;

  /// `arena` may be null: everything is refused then.
  TrunkFiles(Loop& loop, kvsnap::Arena* arena, TrunkIndex& trunks, kvsnap::FileIo& io);

  /// Writes the first `num_tokens` of a trunk that lies in the arena.
  void write(TrunkId trunk, std::uint32_t num_tokens, const std::string& path,
             const TrunkOwner& owner, const EngineIdentity& engine, double prefill_seconds,
             const Written& done);
  /// Reads a file into the arena; the trunk that has its tokens has a snapshot then. Errors: no
  /// file, damage, another engine's or owner's, no room. `owner`: nothing takes the file's own.
  void read(const std::string& path, std::optional<TrunkOwner> owner, const EngineIdentity& engine,
            const Read& done);

  /// For other work on files. Whoever calls it waits for nothing.
  FileCrew& crew() { return crew_; }
  kvsnap::FileIo& io() { return io_; }

  /// Called with what was read and how long that took, from the disk into the arena.
  std::function<void(std::uint64_t bytes, Clock::Duration took)> on_read;

 private:
  struct Reading;
  void make_room(const std::shared_ptr<Reading>& reading);
  void publish(const std::shared_ptr<Reading>& reading);

  Loop& loop_;
  kvsnap::Arena* arena_;
  TrunkIndex& trunks_;
  kvsnap::FileIo& io_;
  FileCrew crew_;  // last: its threads use the arena's memory
};

}  // namespace thaw::forkpool
