#include "forkpool/spill_tier.h"

#include <algorithm>
#include <utility>

#include "engine/base/log.h"
#include "kvsnap/container_format.h"

namespace thaw::forkpool {
namespace {

// Requests wait for the scan no longer than this; what it finds later serves later ones.
constexpr std::chrono::seconds kScanPatience{10};
constexpr std::size_t kMaxUnwritten = 256;
constexpr std::chrono::milliseconds kBusyPause{100};
/// What a file will take, about: blocks on page boundaries, header, table, token ids, sidecar.
std::uint64_t file_bytes(const Trunk& trunk, std::uint64_t block_bytes) {
  constexpr std::uint64_t kPage = kvsnap::kPayloadAlignment;
  constexpr std::uint64_t kOthers = 16384;
  constexpr std::uint64_t kOthersPerToken = 16;
  const std::uint64_t aligned = (block_bytes + kPage - 1) / kPage * kPage;
  return trunk.names.size() * aligned + kOthers + trunk.num_tokens() * kOthersPerToken;
}

}  // namespace

SpillTier::SpillTier(Loop& loop, kvsnap::Arena* arena, TrunkIndex& trunks, TrunkFiles& files,
                     std::string directory, std::uint64_t max_bytes, PrefillSeconds prefill_seconds,
                     StoreTier* store)
    : loop_(loop),
      arena_(arena),
      trunks_(trunks),
      files_(files),
      directory_(std::make_shared<SpillDirectory>(files.io(), std::move(directory), max_bytes)),
      prefill_seconds_(std::move(prefill_seconds)),
      store_(store),
      scan_timer_(loop),
      write_timer_(loop) {}

void SpillTier::start() {
  const auto be_ready = [this] {
    scan_timer_.cancel();
    if (!std::exchange(ready_, true) && on_ready) on_ready();
  };
  scan_timer_.start(loop_.now() + kScanPatience, be_ready);
  struct Found {
    Result<SpillDirectory::Scan> scan = SpillDirectory::Scan{};
    SpillDirectory::Usage usage;
  };
  auto found = std::make_shared<Found>();
  const bool taken = files_.crew().run(
      [directory = directory_, found](ThreadPool& threads) {
        found->scan = directory->scan(threads);
        const auto gone = directory->make_room(0, {});
        if (found->scan && gone) {
          std::erase_if(found->scan->files, [&](const SpillDirectory::File& file) {
            return std::ranges::find(*gone, file.path) != gone->end();
          });
        }
        found->usage = directory->usage();
      },
      [this, found, be_ready] {
        if (found->scan) {
          counts_.refused += found->scan->num_refused;
          found_ = std::move(found->scan->files);
          logger("pool")->info("spill: {} trunks in files", found_.size());
        } else {
          logger("pool")->error("spill: {}", found->scan.error().to_string());
        }
        usage_ = found->usage;
        index();
        if (on_change) on_change();
        be_ready();
      });
  if (!taken) be_ready();
}

void SpillTier::identify(const EngineIdentity& engine) {
  engine_ = std::make_unique<const EngineIdentity>(engine);
  index();
}

void SpillTier::index() {
  if (engine_ == nullptr) return;
  for (SpillDirectory::File& file : std::exchange(found_, {})) {
    if (file.document.engine_fingerprint != engine_->fingerprint) continue;
    PrefixNames names(file.document.cache_root, file.document.token_ids, std::move(file.names));
    const TrunkId id = trunks_.add(names, names.num_blocks(), file.document.payload_bytes());
    Trunk& trunk = *trunks_.find(id);
    trunk.set_owner(file.document.owner);
    has_file(trunk, file.path);
  }
}

void SpillTier::has_file(Trunk& trunk, const std::string& path) {
  trunk.file = path;
  settle_pin(arena_, trunk);
  if (store_ != nullptr) store_->offer(path);
}

std::set<std::string> SpillTier::waiting_paths() const {
  return store_ != nullptr ? store_->waiting() : std::set<std::string>();
}

void SpillTier::spill(TrunkId trunk, Done done) {
  const auto answer = [&](Result<TrunkId> result) {
    if (done) done(std::move(result));
  };
  const Trunk* known = trunks_.find(trunk);
  if (known == nullptr) return answer(make_error(Errc::kNotFound, "the trunk is gone"));
  if (!known->file.empty()) return answer(trunk);
  if (!known->has_owner || engine_ == nullptr)
    return answer(make_error(Errc::kUnsupported, "nobody knows whose trunk it is"));
  if (done) {
    const auto behind = std::ranges::find_if(waiting_, [](const Job& job) { return !job.done; });
    waiting_.insert(behind, {trunk, std::move(done)});
  } else {
    const bool waits =
        writing_ == trunk || std::ranges::find(waiting_, trunk, &Job::trunk) != waiting_.end();
    if (waits || !has_room()) return;
    waiting_.push_back({trunk, nullptr});
  }
  write_next();
}

bool SpillTier::has_room() const {
  return waiting_.size() < kMaxUnwritten;
}

std::set<std::string> SpillTier::pinned_paths() const {
  std::set<std::string> paths;
  for (const auto& [id, trunk] : trunks_.trunks())
    if (trunk.pins > 0 && !trunk.file.empty()) paths.insert(trunk.file);
  return paths;
}

void SpillTier::write_next() {
  if (writing_ || waiting_.empty()) return;
  Job job = std::move(waiting_.front());
  waiting_.pop_front();
  const Trunk* trunk = trunks_.find(job.trunk);
  if (trunk == nullptr || !trunk->file.empty()) {  // evicted, or written, while it waited
    if (job.done) {
      job.done(trunk != nullptr ? Result<TrunkId>(job.trunk)
                                : make_error(Errc::kNotFound, "the trunk left the arena"));
    }
    return write_next();
  }
  writing_ = job.trunk;
  struct Room {
    Result<std::vector<std::string>> gone = std::vector<std::string>{};
    bool is_there = false;
  };
  auto room = std::make_shared<Room>();
  const std::string path = directory_->path_of(trunk->names.back());
  const std::uint64_t bytes = file_bytes(*trunk, engine_->format.block_bytes);
  const bool taken = files_.crew().run(
      [directory = directory_, room, path, bytes, pinned = pinned_paths(),
       last = waiting_paths()](ThreadPool&) {
        room->is_there = directory->holds(path);  // another server, or an earlier life
        if (room->is_there)
          directory->touch(path);
        else
          room->gone = directory->make_room(bytes, pinned, last);
      },
      [this, room, path, job] {
        if (room->gone) {
          counts_.evictions += room->gone->size();
          for (const std::string& gone : *room->gone)
            forget(gone);
        }
        Trunk* known = trunks_.find(job.trunk);
        if (room->is_there && known != nullptr) {
          has_file(*known, path);
        } else if (room->gone && known != nullptr) {
          return write(job, path);
        }
        writing_.reset();
        if (!room->gone) logger("pool")->warn("spill: {}", room->gone.error().to_string());
        if (job.done) {
          job.done(!room->gone        ? Result<TrunkId>(room->gone.error())
                   : known == nullptr ? make_error(Errc::kNotFound, "the trunk left the arena")
                                      : Result<TrunkId>(job.trunk));
        }
        write_next();
      });
  if (taken) return;
  writing_.reset();
  waiting_.push_front(std::move(job));
  write_timer_.start(loop_.now() + kBusyPause, [this] { write_next(); });
}

void SpillTier::write(const Job& job, const std::string& path) {
  const Trunk& trunk = *trunks_.find(job.trunk);
  files_.write(
      job.trunk, trunk.num_tokens(), path, trunk.owner, *engine_,
      prefill_seconds_(trunk.num_tokens()), [this, job, path](Result<KeptTrunk> written) {
        writing_.reset();
        Trunk* known = trunks_.find(job.trunk);
        if (written) {
          counts_.written_bytes += written->bytes;
          ++counts_.writes;
        } else {
          ++counts_.failures;
          logger("pool")->warn("spill: {}", written.error().to_string());
        }
        if (written && known != nullptr) has_file(*known, path);
        refresh_usage();
        if (job.done)
          job.done(written ? Result<TrunkId>(job.trunk) : Result<TrunkId>(written.error()));
        write_next();
      });
}

void SpillTier::fetch(TrunkId trunk, Done done) {
  const Trunk* known = trunks_.find(trunk);
  if (known != nullptr && known->file.empty() && !known->object.empty() && store_ != nullptr)
    return fetch_object(trunk, std::move(done));
  if (known == nullptr || known->file.empty() || engine_ == nullptr)
    return done(make_error(Errc::kNotFound, "no file holds the trunk"));
  const std::string path = known->file;
  files_.read(path, known->owner, *engine_,
              [this, trunk, path, done = std::move(done)](Result<TrunkId> read) {
                if (read) {
                  ++counts_.hits;
                  fetched_.erase(trunk);
                  const Trunk& now = *trunks_.find(*read);
                  counts_.restored_bytes += now.bytes;
                  files_.crew().run(
                      [directory = directory_, path](ThreadPool&) { directory->touch(path); },
                      [] {});
                  if (on_change) on_change();
                  return done(read);
                }
                const Errc code = read.error().code;
                logger("pool")->warn("spilled KV not used: {}", read.error().to_string());
                // What is full, or cannot be opened, may be right.
                if (code == Errc::kResourceExhausted) return done(read);
                // What the disk damaged may be right in the store; what just came from there is
                // not.
                const Trunk* damaged = trunks_.find(trunk);
                if (fetched_.erase(trunk) > 0 && code == Errc::kDataLoss && damaged != nullptr)
                  store_->discard(std::string(damaged->object));
                forget(path);
                if (code == Errc::kDataLoss || code == Errc::kUnsupported ||
                    code == Errc::kInvalidArgument || code == Errc::kUnauthenticated) {
                  ++counts_.refused;
                  files_.crew().run(
                      [directory = directory_, path](ThreadPool&) { directory->remove(path); },
                      [this] { refresh_usage(); });
                }
                done(read);
              });
}

/// Makes room for it first: what the directory may take holds here too.
void SpillTier::fetch_object(TrunkId trunk, Done done) {
  const auto [waiting, is_new] = objects_.try_emplace(trunk);
  waiting->second.push_back(std::move(done));
  if (!is_new) return;
  const Trunk& known = *trunks_.find(trunk);
  const std::string path = directory_->path_of(known.names.back());
  const std::uint64_t bytes = file_bytes(known, engine_->format.block_bytes);
  auto gone = std::make_shared<Result<std::vector<std::string>>>(std::vector<std::string>());
  const bool taken = files_.crew().run(
      [directory = directory_, gone, bytes, pinned = pinned_paths(),
       last = waiting_paths()](ThreadPool&) { *gone = directory->make_room(bytes, pinned, last); },
      [this, gone, trunk, path] {
        if (!*gone) return on_object(trunk, path, gone->error());
        counts_.evictions += (*gone)->size();
        for (const std::string& file : **gone)
          forget(file);
        store_->fetch(trunk, path, [this, trunk, path](const Result<void>& fetched) {
          on_object(trunk, path, fetched);
        });
      });
  if (!taken) on_object(trunk, path, make_error(Errc::kResourceExhausted, "too much work waits"));
}

void SpillTier::on_object(TrunkId trunk, const std::string& path, const Result<void>& fetched) {
  const std::vector<Done> waiting = std::move(objects_.at(trunk));
  objects_.erase(trunk);
  Trunk* known = trunks_.find(trunk);
  if (fetched && known != nullptr) {
    known->file = path;
    fetched_.insert(trunk);
    settle_pin(arena_, *known);
    refresh_usage();
  } else if (!fetched) {
    logger("pool")->warn("KV not fetched: {}", fetched.error().to_string());
  }
  for (const Done& done : waiting) {
    if (!fetched)
      done(fetched.error());
    else
      fetch(trunk, done);
  }
}

/// A file is gone. Its trunk goes too unless it lies in the arena.
void SpillTier::forget(const std::string& path) {
  for (const auto& [id, entry] : trunks_.trunks()) {
    if (entry.file != path) continue;
    Trunk& trunk = *trunks_.find(id);
    trunk.file.clear();
    settle_pin(arena_, trunk);
    if (!trunk.is_anywhere()) trunks_.remove(id);
    return;
  }
}

void SpillTier::refresh_usage() {
  auto usage = std::make_shared<SpillDirectory::Usage>();
  files_.crew().run([directory = directory_, usage](ThreadPool&) { *usage = directory->usage(); },
                    [this, usage] {
                      usage_ = *usage;
                      if (on_change) on_change();
                    });
}

void SpillTier::add_to(PoolStatus& status) const {
  status.files = counts_;
  status.files.entries = usage_.files;
  status.files.bytes = usage_.bytes;
  status.files.waiting = waiting_.size() + (writing_ ? 1 : 0);
}

}  // namespace thaw::forkpool
