#include "forkpool/trunk_files.h"

#include <limits>
#include <utility>
#include <vector>

#include "engine/base/crc32c.h"
#include "engine/base/log.h"
#include "kvsnap/kv_file.h"

namespace thaw::forkpool {
namespace {

// The pool itself, as a holder of leases: it never exits before the arena.
constexpr kvsnap::Holder kPool{std::numeric_limits<std::uint32_t>::max(), 0};

Error too_busy() {
  return make_error(Errc::kResourceExhausted, "too many files are being read and written");
}

/// The blocks of an extent list, in order.
template <typename Byte>
std::vector<std::span<Byte>> block_spans(const kvsnap::Arena& arena,
                                         const std::vector<kvsnap::Extent>& extents,
                                         std::uint64_t block_bytes) {
  std::vector<std::span<Byte>> blocks;
  for (const kvsnap::Extent& extent : extents) {
    const std::span<std::byte> bytes = arena.bytes(extent);
    for (std::uint64_t at = 0; at < bytes.size(); at += block_bytes)
      blocks.push_back(bytes.subspan(at, block_bytes));
  }
  return blocks;
}

}  // namespace

TrunkFiles::TrunkFiles(Loop& loop, kvsnap::Arena* arena, TrunkIndex& trunks, kvsnap::FileIo& io)
    : loop_(loop), arena_(arena), trunks_(trunks), io_(io), crew_(loop) {}

void TrunkFiles::write(TrunkId trunk, std::uint32_t num_tokens, const std::string& path,
                       const TrunkOwner& owner, const EngineIdentity& engine,
                       double prefill_seconds, const Written& done) {
  const Trunk* known = trunks_.find(trunk);
  if (arena_ == nullptr || known == nullptr || !known->snapshot)
    return done(make_error(Errc::kNotFound, "the trunk is not in the arena"));
  auto lease = arena_->lease_for_reading(*known->snapshot, kPool);
  if (!lease) return done(std::move(lease).error());
  struct Writing {
    kvsnap::KvDocument document;
    kvsnap::ReadLease lease;
    std::vector<std::span<const std::byte>> blocks;
    Result<void> result;
  };
  auto writing = std::make_shared<Writing>();
  writing->lease = *std::move(lease);
  kvsnap::KvDocument& document = writing->document;
  document.writer = std::string("thaw ") + engine.system_fingerprint;
  document.owner = owner;
  document.engine_fingerprint = engine.fingerprint;
  document.system_fingerprint = engine.system_fingerprint;
  document.cache_root = known->root;
  document.kv_layout = engine.format.kv_layout;
  document.block_size = engine.format.block_size;
  document.block_bytes = engine.format.block_bytes;
  document.token_ids.assign(known->token_ids.begin(), known->token_ids.begin() + num_tokens);
  document.tp_rank = engine.format.tp_rank;
  document.tp_size = engine.format.tp_size;
  document.prefill_seconds = prefill_seconds;
  writing->blocks =
      block_spans<const std::byte>(*arena_, writing->lease.manifest.extents, document.block_bytes);
  writing->blocks.resize(document.num_blocks());
  const bool taken = crew_.run(
      [this, writing, path](ThreadPool&) {
        // What was damaged since the worker wrote it must not get a right checksum.
        for (const kvsnap::Extent& extent : writing->lease.manifest.extents) {
          if (crc32c(arena_->bytes(extent)) == extent.crc32c) continue;
          writing->result = make_error(Errc::kDataLoss, "the snapshot in the arena is damaged");
          return;
        }
        writing->result = write_kv_file(io_, path, writing->document, writing->blocks);
      },
      [this, writing, done] {
        arena_->end_reading(writing->lease.id);
        if (!writing->result) return done(writing->result.error());
        const kvsnap::KvDocument& written = writing->document;
        done(KeptTrunk{
            static_cast<std::uint32_t>(written.token_ids.size()), written.payload_bytes(), {}});
      });
  if (taken) return;
  arena_->end_reading(writing->lease.id);
  done(too_busy());
}

struct TrunkFiles::Reading {
  std::string path;
  std::optional<TrunkOwner> owner;
  EngineIdentity engine;
  Read done;
  Clock::TimePoint started;

  std::unique_ptr<kvsnap::KvFile> file;
  std::vector<Hash128> names;
  kvsnap::WriteLease lease;
  Result<void> result;
};

void TrunkFiles::read(const std::string& path, std::optional<TrunkOwner> owner,
                      const EngineIdentity& engine, const Read& done) {
  if (arena_ == nullptr)
    return done(make_error(Errc::kUnsupported, "there is no arena to read KV into"));
  auto reading = std::make_shared<Reading>();
  reading->path = path;
  reading->owner = std::move(owner);
  reading->engine = engine;
  reading->done = done;
  reading->started = loop_.now();
  const bool taken = crew_.run(
      [this, reading](ThreadPool& threads) {
        auto file = kvsnap::KvFile::open(io_, reading->path, threads);
        if (!file) {
          reading->result = file.error();
          return;
        }
        const kvsnap::KvDocument& document = file->document();
        reading->result = check_kv_document(
            document, reading->engine.fingerprint, reading->engine.system_fingerprint,
            reading->engine.format, reading->owner.value_or(document.owner));
        if (!reading->result) return;
        PrefixNames names(document.cache_root, document.token_ids);
        for (std::size_t block = 0; block < names.num_blocks(); ++block)
          reading->names.push_back(names.name(block));
        reading->file = std::make_unique<kvsnap::KvFile>(*std::move(file));
      },
      [this, reading] { make_room(reading); });
  if (!taken) done(too_busy());
}

void TrunkFiles::make_room(const std::shared_ptr<Reading>& reading) {
  if (!reading->result) return reading->done(reading->result.error());
  const kvsnap::KvDocument& document = reading->file->document();
  TrunkId known = 0;
  if (const Trunk* trunk = trunks_.find(reading->names.back(), &known);
      trunk != nullptr && trunk->snapshot) {
    return reading->done(known);
  }
  auto lease =
      arena_->lease_for_writing(kPool, document.num_blocks(), reading->engine.format.block_bytes);
  if (!lease) return reading->done(std::move(lease).error());
  reading->lease = *std::move(lease);
  const bool taken = crew_.run(
      [this, reading](ThreadPool& threads) {
        const std::uint64_t block_bytes = reading->engine.format.block_bytes;
        reading->result = reading->file->read(
            block_spans<std::byte>(*arena_, reading->lease.extents, block_bytes), threads);
        std::size_t block = 0;
        const Crc32cCombiner combine(block_bytes);
        for (kvsnap::Extent& extent : reading->lease.extents)
          for (std::uint64_t at = 0; at < extent.size_bytes; at += block_bytes)
            extent.crc32c = combine(extent.crc32c, reading->file->checksum(block++));
      },
      [this, reading] { publish(reading); });
  if (taken) return;
  arena_->abandon(reading->lease.id, kPool);
  reading->done(too_busy());
}

void TrunkFiles::publish(const std::shared_ptr<Reading>& reading) {
  const auto fail = [&](Error error) {
    arena_->abandon(reading->lease.id, kPool);
    reading->done(std::move(error));
  };
  if (!reading->result) return fail(reading->result.error());
  const kvsnap::KvDocument& document = reading->file->document();
  TrunkId known = 0;
  if (const Trunk* trunk = trunks_.find(reading->names.back(), &known);
      trunk != nullptr && trunk->snapshot) {  // meanwhile
    arena_->abandon(reading->lease.id, kPool);
    return reading->done(known);
  }
  kvsnap::Manifest manifest;
  manifest.cache_root = document.cache_root;
  manifest.kv_layout = document.kv_layout;
  manifest.block_size = document.block_size;
  manifest.block_bytes = document.block_bytes;
  manifest.token_ids = document.token_ids;
  manifest.tp_rank = document.tp_rank;
  manifest.tp_size = document.tp_size;
  manifest.extents = reading->lease.extents;
  auto snapshot = arena_->publish(reading->lease.id, kPool, std::move(manifest));
  if (!snapshot) return fail(std::move(snapshot).error());
  if (on_read) on_read(document.payload_bytes(), loop_.now() - reading->started);
  PrefixNames names(document.cache_root, document.token_ids, reading->names);
  const TrunkId id = trunks_.add(names, names.num_blocks(), document.payload_bytes());
  Trunk& trunk = *trunks_.find(id);
  trunk.snapshot = *snapshot;
  trunk.set_owner(document.owner);
  settle_pin(arena_, trunk);
  reading->done(id);
}

}  // namespace thaw::forkpool
