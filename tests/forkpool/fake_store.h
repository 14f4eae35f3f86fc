#pragma once

#include <condition_variable>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "kvsnap/store/store.h"

namespace thaw::forkpool {

/// What several FakeStores share: objects in memory, and what shall go wrong with them.
struct FakeBucket {
  struct Held {
    std::vector<std::byte> bytes;
    std::int64_t modified = 0;
  };
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::string, Held> objects;  // by URL; guarded by mutex, as all else
  std::optional<Errc> failure;  ///< of every operation
  std::optional<Errc> put_failure;  ///< of puts alone
  bool is_shut = false;  ///< puts and streams wait until it is not
  int lists = 0;
  int puts = 0;  ///< begun
  int streams = 0;  ///< begun
  std::int64_t clock = 1000;  ///< one more with every put

  template <typename Change>
  void with(const Change& change) {
    const std::lock_guard lock(mutex);
    change(*this);
    changed.notify_all();
  }
  std::size_t size() {
    const std::lock_guard lock(mutex);
    return objects.size();
  }
};

/// A store in memory.
class FakeStore final : public kvsnap::Store {
 public:
  explicit FakeStore(std::shared_ptr<FakeBucket> bucket) : bucket_(std::move(bucket)) {}

  std::string name() const override { return "fake"; }
  Result<std::unique_ptr<kvsnap::StoredObject>> open(const std::string& url) override {
    const std::lock_guard lock(bucket_->mutex);
    if (auto checked = check(url); !checked) return std::move(checked).error();
    const auto found = bucket_->objects.find(url);
    if (found == bucket_->objects.end()) return make_error(Errc::kNotFound, url + ": not there");
    const auto& [bytes, modified] = found->second;
    return std::unique_ptr<kvsnap::StoredObject>(std::make_unique<Object>(
        kvsnap::ObjectInfo{url, bytes.size(), std::to_string(modified)}, bytes, *this));
  }
  Result<kvsnap::ObjectInfo> put(const std::string& url, const std::string& path) override {
    std::ifstream file(path, std::ios::binary);
    const std::string text{std::istreambuf_iterator<char>(file), {}};
    std::unique_lock lock(bucket_->mutex);
    ++bucket_->puts;
    if (auto passed = pass(url, lock); !passed) return std::move(passed).error();
    if (bucket_->put_failure) return make_error(*bucket_->put_failure, url + ": full");
    auto& [bytes, modified] = bucket_->objects[url];
    bytes.resize(text.size());
    std::memcpy(bytes.data(), text.data(), text.size());
    modified = bucket_->clock++;
    return kvsnap::ObjectInfo{url, bytes.size(), std::to_string(modified)};
  }
  Result<std::vector<kvsnap::ListedObject>> list(const std::string& folder,
                                                 std::size_t max_objects) override {
    const std::lock_guard lock(bucket_->mutex);
    ++bucket_->lists;
    if (auto checked = check(folder); !checked) return std::move(checked).error();
    std::vector<kvsnap::ListedObject> listed;
    for (const auto& [url, held] : bucket_->objects)
      if (url.starts_with(folder) && listed.size() < max_objects)
        listed.push_back({url.substr(folder.size()), held.bytes.size(), held.modified});
    return listed;
  }
  Result<void> remove(const std::string& url) override {
    const std::lock_guard lock(bucket_->mutex);
    if (auto checked = check(url); !checked) return checked;
    bucket_->objects.erase(url);
    return {};
  }
  std::unique_ptr<kvsnap::Store> share() override { return std::make_unique<FakeStore>(bucket_); }
  void stop() override {
    bucket_->with([this](FakeBucket&) { is_stopped_ = true; });
  }

 private:
  class Object final : public kvsnap::StoredObject {
   public:
    Object(kvsnap::ObjectInfo info, std::vector<std::byte> bytes, FakeStore& store)
        : StoredObject(std::move(info)), bytes_(std::move(bytes)), store_(store) {}
    Result<void> stream(std::uint64_t offset, std::uint64_t size,
                        const kvsnap::ByteSink& sink) const override {
      {
        std::unique_lock lock(store_.bucket_->mutex);
        ++store_.bucket_->streams;
        if (auto passed = store_.pass(info().url, lock); !passed) return passed;
      }
      constexpr std::uint64_t kPiece = 777;
      for (std::uint64_t at = offset; at < offset + size; at += kPiece) {
        const std::uint64_t end = std::min(at + kPiece, offset + size);
        if (auto taken = sink(std::span(bytes_).subspan(at, end - at)); !taken) return taken;
      }
      return {};
    }

   private:
    std::vector<std::byte> bytes_;
    FakeStore& store_;
  };

  // Both with the bucket's mutex held.
  Result<void> check(const std::string& url) const {
    if (is_stopped_) return make_error(Errc::kCancelled, url + ": stopped");
    if (bucket_->failure) return make_error(*bucket_->failure, url + ": said the test");
    return {};
  }
  Result<void> pass(const std::string& url, std::unique_lock<std::mutex>& lock) {
    bucket_->changed.notify_all();
    bucket_->changed.wait(lock, [this] { return !bucket_->is_shut || is_stopped_; });
    return check(url);
  }

  std::shared_ptr<FakeBucket> bucket_;
  bool is_stopped_ = false;  // guarded by the bucket's mutex
};

}  // namespace thaw::forkpool
