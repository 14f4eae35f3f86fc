#include "forkpool/trunk_store.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "forkpool/ledger.h"
#include "kvsnap/aligned_buffer.h"
#include "kvsnap/container_writer.h"
#include "kvsnap/kv_file.h"
#include "kvsnap/store/store_io.h"

namespace thaw::forkpool {
namespace {

constexpr std::size_t kHashDigits = 32;
/// More are not looked at: those listed first stand for all.
constexpr std::size_t kMaxObjects = 100'000;
constexpr std::size_t kChunkBytes = std::size_t{4} << 20;

bool is_key(std::string_view key) {
  const auto is_hash = [](std::string_view text) {
    return text.size() == kHashDigits &&
           text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
  };
  return key.size() == 2 * kHashDigits + 1 + kvsnap::kKvFileSuffix.size() &&
         key[kHashDigits] == '/' && key.ends_with(kvsnap::kKvFileSuffix) &&
         is_hash(key.substr(0, kHashDigits)) && is_hash(key.substr(kHashDigits + 1, kHashDigits));
}

/// A file that may take aligned writes only, written front to back.
class Sequel {
 public:
  explicit Sequel(kvsnap::IoFile& file) : file_(file), buffer_(kChunkBytes) {}

  Result<void> add(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const std::size_t taken = std::min(bytes.size(), buffer_.bytes().size() - filled_);
      std::memcpy(buffer_.bytes().data() + filled_, bytes.data(), taken);
      filled_ += taken;
      bytes = bytes.subspan(taken);
      if (filled_ < buffer_.bytes().size()) continue;
      if (auto flushed = flush(filled_); !flushed) return flushed;
    }
    return {};
  }
  Result<void> finish() {
    const std::uint64_t size = at_ + filled_;
    const std::size_t aligned = (filled_ + kvsnap::AlignedBuffer::kAlignment - 1) /
                                kvsnap::AlignedBuffer::kAlignment *
                                kvsnap::AlignedBuffer::kAlignment;
    std::ranges::fill(buffer_.bytes().subspan(filled_, aligned - filled_), std::byte{0});
    if (aligned > 0)
      if (auto flushed = flush(aligned); !flushed) return flushed;
    if (auto cut = file_.set_size(size); !cut) return cut;
    return file_.sync();
  }

 private:
  Result<void> flush(std::size_t size_bytes) {
    auto written = file_.write(buffer_.bytes().first(size_bytes), at_);
    at_ += size_bytes;
    filled_ = 0;
    return written;
  }

  kvsnap::IoFile& file_;
  kvsnap::AlignedBuffer buffer_;
  std::size_t filled_ = 0;
  std::uint64_t at_ = 0;
};

}  // namespace

TrunkStore::TrunkStore(std::unique_ptr<kvsnap::Store> store, std::string url, kvsnap::FileIo& io)
    : store_(std::move(store)), url_(std::move(url)), io_(io) {}

std::string TrunkStore::key_of(const Hash128& engine, const std::string& path) {
  return engine.to_hex() + "/" + path.substr(path.rfind('/') + 1);
}

std::string TrunkStore::key_of(const Hash128& engine, const Hash128& last_block) {
  return engine.to_hex() + "/" + last_block.to_hex() + std::string(kvsnap::kKvFileSuffix);
}

bool TrunkStore::is_of(const Hash128& engine, const std::string& key) {
  return key.starts_with(engine.to_hex() + "/");
}

Result<std::vector<TrunkStore::Object>> TrunkStore::list() {
  auto listed = store_->list(url_ + "/", kMaxObjects);
  if (!listed) return std::move(listed).error();
  std::vector<Object> objects;
  for (kvsnap::ListedObject& object : *listed)
    if (is_key(object.name))
      objects.push_back({std::move(object.name), object.size_bytes, object.modified});
  return objects;
}

Result<TrunkStore::Description> TrunkStore::describe(const std::string& key, ThreadPool& threads) {
  kvsnap::StoreIo objects(*store_, "");
  const auto file = kvsnap::KvFile::open(objects, url_of(key), threads);
  if (!file) return file.error();
  Description description{file->document(), {}};
  PrefixNames names(description.document.cache_root, description.document.token_ids);
  for (std::size_t block = 0; block < names.num_blocks(); ++block)
    description.names.push_back(names.name(block));
  if (key_of(description.document.engine_fingerprint, description.names.back()) != key)
    return make_error(Errc::kDataLoss, url_of(key) + " holds other KV than its name says");
  return description;
}

Result<std::uint64_t> TrunkStore::put(const std::string& key, const std::string& path,
                                      std::uint64_t max_bytes) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0)
    return make_error(Errc::kNotFound, path + " is gone; it was to go to " + url_of(key));
  const auto size = static_cast<std::uint64_t>(info.st_size);
  if (max_bytes != 0 && size > max_bytes) return std::uint64_t{0};
  // Another server, or an earlier life, may have put it. Who must not read writes it again.
  const auto there = store_->open(url_of(key));
  if (there && (*there)->info().size_bytes == size) return size;
  if (!there && there.error().code != Errc::kNotFound &&
      there.error().code != Errc::kUnauthenticated) {
    return there.error();
  }
  const auto put = store_->put(url_of(key), path);
  if (put) return size;
  if (::stat(path.c_str(), &info) != 0)
    return make_error(Errc::kNotFound, path + " went while it was on its way to " + url_of(key));
  return put.error();
}

Result<std::uint64_t> TrunkStore::fetch(const std::string& key, const std::string& path) {
  const auto object = store_->open(url_of(key));
  if (!object) return object.error();
  const std::uint64_t size = (*object)->info().size_bytes;
  const std::string incomplete = path + kvsnap::kIncompleteSuffix;
  auto file = io_.create(incomplete, size);
  if (!file) return std::move(file).error();
  const auto fetched = [&]() -> Result<void> {
    Sequel sequel(**file);
    auto streamed = (*object)->stream(
        0, size, [&](std::span<const std::byte> bytes) { return sequel.add(bytes); });
    if (!streamed) return streamed;
    if (auto finished = sequel.finish(); !finished) return finished;
    if (auto renamed = io_.rename(incomplete, path); !renamed) return renamed;
    return io_.sync_directory_of(path);
  }();
  if (fetched) return size;
  // While it is still locked, so that nobody else's file goes.
  static_cast<void>(io_.remove(incomplete));
  return fetched.error();
}

}  // namespace thaw::forkpool
