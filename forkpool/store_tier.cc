#include "forkpool/store_tier.h"

#include <algorithm>
#include <utility>

#include "engine/base/log.h"

namespace thaw::forkpool {
namespace {

constexpr std::size_t kMaxUploads = 4096;
/// Trunks of this engine that are looked into, the newest first: each costs a few requests.
constexpr std::size_t kMaxDescribed = 1024;
/// Each fills its connections; more would only be slower together.
constexpr std::uint32_t kMaxFetching = 2;
constexpr std::chrono::seconds kFirstPause{1};
constexpr std::chrono::seconds kLongestPause{60};

/// What a file in the store says of itself, not of the way there.
bool is_about_object(Errc code) {
  return code == Errc::kNotFound || code == Errc::kDataLoss || code == Errc::kUnsupported ||
         code == Errc::kInvalidArgument;
}

}  // namespace

StoreTier::StoreTier(Loop& loop, TrunkIndex& trunks, kvsnap::FileIo& io,
                     std::unique_ptr<kvsnap::Store> store, Options options)
    : loop_(loop),
      trunks_(trunks),
      options_(std::move(options)),
      store_(std::make_shared<TrunkStore>(std::move(store), options_.url, io)),
      puts_{"put", Loop::Timer(loop)},
      gets_{"read", Loop::Timer(loop)},
      look_timer_(loop),
      tending_(loop),
      fetching_(loop) {}

StoreTier::~StoreTier() {
  store_->stop();
}

void StoreTier::changed() {
  if (on_change) on_change();
}

void StoreTier::identify(const EngineIdentity& engine) {
  engine_ = std::make_unique<const EngineIdentity>(engine);
  look();
}

void StoreTier::look_later(Clock::Duration after) {
  look_timer_.start(loop_.now() + after, [this] { look(); });
}

/// Lists what is there. Files are put only after the first list, so that none goes twice.
void StoreTier::look() {
  if (std::exchange(looking_, true)) return;
  auto listed =
      std::make_shared<Result<std::vector<TrunkStore::Object>>>(std::vector<TrunkStore::Object>());
  const bool taken =
      tending_.run([store = store_, listed](ThreadPool&) { *listed = store->list(); },
                   [this, listed] {
                     looking_ = false;
                     if (!*listed) {
                       failed(gets_, listed->error());
                       return look_later(gets_.length);
                     }
                     worked(gets_);
                     if (!std::exchange(fetched_since_look_, false) && on_idle_look) on_idle_look();
                     on_listed(std::move(**listed));
                     look_later(options_.list_every);
                   });
  if (taken) return;
  looking_ = false;
  look_later(kFirstPause);
}

void StoreTier::on_listed(std::vector<TrunkStore::Object> objects) {
  std::map<std::string, Known> before = std::exchange(objects_, {});
  object_bytes_ = 0;
  // The newest first: the others may be too many.
  std::ranges::sort(objects, [](const TrunkStore::Object& a, const TrunkStore::Object& b) {
    return a.modified != b.modified ? a.modified > b.modified : a.key < b.key;
  });
  std::map<std::string, TrunkId> ours;
  for (const auto& [id, trunk] : trunks_.trunks())
    ours.emplace(TrunkStore::key_of(engine_->fingerprint, trunk.names.back()), id);
  to_describe_.clear();
  std::size_t num_described = 0;
  for (TrunkStore::Object& object : objects) {
    if (TrunkStore::is_of(engine_->fingerprint, object.key)) {
      if (const auto known = ours.find(object.key); known != ours.end()) {
        is_in(*trunks_.find(known->second), object.key);
        ++num_described;
      } else if (num_described < kMaxDescribed) {
        to_describe_.push_back(object.key);
        ++num_described;
      }
    }
    before.erase(object.key);
    add_object(object.key, {object.bytes, object.modified});
  }
  for (const auto& [key, gone] : before)
    forget(key);
  if (!std::exchange(is_listed_, true))
    logger("pool")->info("store: {} trunks below {}, {} of this engine to look at", objects_.size(),
                         options_.url, to_describe_.size());
  make_room();
  changed();
  describe_next();
  upload_next();
}

/// One after another: what is fetched and put in between waits for one at most.
void StoreTier::describe_next() {
  if (describing_ || to_describe_.empty() || lasts(gets_)) return;
  const std::string key = to_describe_.front();
  struct Described {
    Result<TrunkStore::Description> result = TrunkStore::Description();
  };
  auto described = std::make_shared<Described>();
  const bool taken = tending_.run(
      [store = store_, described, key](ThreadPool& threads) {
        described->result = store->describe(key, threads);
      },
      [this, described, key] {
        describing_ = false;
        // A new list may have come meanwhile.
        if (to_describe_.empty() || to_describe_.front() != key) return describe_next();
        to_describe_.pop_front();
        if (described->result) {
          on_described(key, std::move(*described->result));
        } else if (is_about_object(described->result.error().code)) {
          logger("pool")->warn("store: {}", described->result.error().to_string());
          ++counts_.refused;
          changed();
        } else {
          return failed(gets_, described->result.error());  // the next list has it again
        }
        describe_next();
      });
  if (taken) describing_ = true;
}

void StoreTier::on_described(const std::string& key, TrunkStore::Description description) {
  if (!objects_.contains(key)) return;
  const kvsnap::KvDocument& document = description.document;
  PrefixNames names(document.cache_root, document.token_ids, std::move(description.names));
  const TrunkId id = trunks_.add(names, names.num_blocks(), document.payload_bytes());
  Trunk& trunk = *trunks_.find(id);
  if (!trunk.has_owner) trunk.set_owner(document.owner);
  is_in(trunk, key);
  changed();
}

void StoreTier::offer(const std::string& path) {
  if (uploads_.size() >= kMaxUploads) {
    logger("pool")->warn("store: {} files wait; {} goes when the server starts again",
                         uploads_.size(), path);
    return;
  }
  if (path == uploading_path_ || std::ranges::find(uploads_, path) != uploads_.end()) return;
  uploads_.push_back(path);
  upload_next();
  changed();
}

std::set<std::string> StoreTier::waiting() const {
  std::set<std::string> paths(uploads_.begin(), uploads_.end());
  if (uploading_) paths.insert(uploading_path_);
  return paths;
}

bool StoreTier::is_settled() const {
  // Nothing is put before the first list.
  return (uploads_.empty() && !uploading_) || lasts(puts_) || (!is_listed_ && lasts(gets_));
}

void StoreTier::upload_next() {
  if (uploading_ || !is_listed_ || lasts(puts_)) return;
  while (!uploads_.empty()) {
    const std::string path = uploads_.front();
    const std::string key = TrunkStore::key_of(engine_->fingerprint, path);
    uploads_.pop_front();
    if (objects_.contains(key)) {
      for (const auto& [id, trunk] : trunks_.trunks())
        if (trunk.file == path) is_in(*trunks_.find(id), key);
      continue;
    }
    auto bytes = std::make_shared<Result<std::uint64_t>>(std::uint64_t{0});
    const bool taken = tending_.run([store = store_, bytes, key, path, most = options_.max_bytes](
                                        ThreadPool&) { *bytes = store->put(key, path, most); },
                                    [this, bytes, key, path] {
                                      uploading_ = false;
                                      uploading_path_.clear();
                                      on_uploaded(path, key, *bytes);
                                      upload_next();
                                      changed();
                                    });
    if (!taken) return uploads_.push_front(path);
    uploading_ = true;
    uploading_path_ = path;
    return;
  }
  if (on_settled) on_settled();
}

void StoreTier::on_uploaded(const std::string& path, const std::string& key,
                            const Result<std::uint64_t>& bytes) {
  if (!bytes) {
    if (bytes.error().code == Errc::kNotFound) return;  // its budget was needed
    uploads_.push_back(path);  // what ails this one may not ail the others
    return failed(puts_, bytes.error());
  }
  worked(puts_);
  if (*bytes == 0) return;  // larger than the budget
  ++counts_.writes;
  counts_.written_bytes += *bytes;
  const auto now = std::chrono::duration_cast<std::chrono::seconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count();
  add_object(key, {*bytes, now});
  for (const auto& [id, trunk] : trunks_.trunks())
    if (trunk.file == path) is_in(*trunks_.find(id), key);
  make_room();
}

/// Removes what was put longest ago while all of it takes more than the budget.
void StoreTier::make_room() {
  if (options_.max_bytes == 0) return;
  if (object_bytes_ <= options_.max_bytes) return;
  std::vector<std::pair<std::int64_t, std::string>> oldest;
  oldest.reserve(objects_.size());
  for (const auto& [key, known] : objects_)
    oldest.emplace_back(known.modified, key);
  std::ranges::sort(oldest);
  std::vector<std::string> victims;
  for (const auto& [modified, key] : oldest) {
    if (object_bytes_ <= options_.max_bytes) break;
    remove_object(key);
    victims.push_back(key);
    ++counts_.evictions;
    logger("pool")->info("store: {} removed from {}", key, options_.url);
  }
  auto removed = std::make_shared<Result<void>>();
  tending_.run(
      [store = store_, removed, victims](ThreadPool&) {
        for (const std::string& key : victims)
          if (auto done = store->remove(key); !done) *removed = std::move(done);
      },
      [this, removed] {
        if (!*removed) failed(puts_, removed->error());  // the next list has it again
      });
}

/// The object is gone. Its trunk goes too unless it lies elsewhere.
void StoreTier::forget(const std::string& key) {
  std::erase(to_describe_, key);
  for (const auto& [id, entry] : trunks_.trunks()) {
    if (entry.object != key) continue;
    Trunk& trunk = *trunks_.find(id);
    trunk.object.clear();
    --num_trunks_;
    if (!trunk.is_anywhere()) trunks_.remove(id);
    return;
  }
}

void StoreTier::is_in(Trunk& trunk, const std::string& key) {
  if (trunk.object.empty()) ++num_trunks_;
  trunk.object = key;
}

void StoreTier::add_object(const std::string& key, const Known& known) {
  const auto [object, is_new] = objects_.try_emplace(key, known);
  if (!is_new) object_bytes_ -= std::exchange(object->second, known).bytes;
  object_bytes_ += known.bytes;
}

void StoreTier::remove_object(const std::string& key) {
  const auto object = objects_.find(key);
  if (object != objects_.end()) {
    object_bytes_ -= object->second.bytes;
    objects_.erase(object);
  }
  forget(key);
}

void StoreTier::failed(Pause& pause, const Error& error) {
  ++counts_.failures;
  const Clock::Duration longest = kLongestPause;
  pause.length =
      pause.length == Clock::Duration() ? Clock::Duration(kFirstPause) : pause.length * 2;
  pause.length = std::min(pause.length, longest);
  pause.until = loop_.now() + pause.length;
  logger("pool")->warn("store: nothing is {} for {} s: {}", pause.what,
                       std::chrono::duration_cast<std::chrono::seconds>(pause.length).count(),
                       error.to_string());
  pause.timer.start(pause.until, [this] {
    describe_next();
    upload_next();
  });
  if (on_settled) on_settled();
  changed();
}

bool StoreTier::is_available() const {
  return is_listed_ && !lasts(gets_) && num_fetching_ < kMaxFetching;
}

void StoreTier::fetch(TrunkId trunk, const std::string& path, Done done) {
  const Trunk* known = trunks_.find(trunk);
  if (known == nullptr || known->object.empty())
    return done(make_error(Errc::kNotFound, "no object holds the trunk"));
  if (!is_available())
    return done(make_error(Errc::kUnavailable, "the store is busy, or left alone for a while"));
  const std::string key = known->object;
  auto fetched = std::make_shared<Result<std::uint64_t>>(std::uint64_t{0});
  const Clock::TimePoint started = loop_.now();
  const bool taken = fetching_.run(
      [store = store_, fetched, key, path](ThreadPool&) { *fetched = store->fetch(key, path); },
      [this, fetched, key, started, done] {
        --num_fetching_;
        fetched_since_look_ = true;
        if (*fetched) {
          worked(gets_);
          ++counts_.hits;
          counts_.restored_bytes += **fetched;
          if (on_fetched) on_fetched(**fetched, loop_.now() - started);
          changed();
          return done({});
        }
        const Error& error = fetched->error();
        if (error.code == Errc::kNotFound) {
          remove_object(key);
        } else if (error.code != Errc::kResourceExhausted && error.code != Errc::kIo) {
          failed(gets_, error);  // a full disk is no fault of the store
        }
        done(error);
      });
  if (!taken) return done(make_error(Errc::kResourceExhausted, "too much is being fetched"));
  ++num_fetching_;
}

void StoreTier::discard(const std::string& key) {
  ++counts_.refused;
  remove_object(key);
  logger("pool")->warn("store: {} is damaged, and removed from {}", key, options_.url);
  tending_.run([store = store_, key](ThreadPool&) { static_cast<void>(store->remove(key)); },
               [] {});
  changed();
}

void StoreTier::add_to(PoolStatus& status) const {
  status.store = counts_;
  status.store.entries = num_trunks_;
  status.store.bytes = object_bytes_;
  status.store.waiting = uploads_.size() + (uploading_ ? 1 : 0);
}

}  // namespace thaw::forkpool
