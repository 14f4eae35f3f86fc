#pragma once

#include <map>
#include <memory>
#include <mutex>

namespace thaw::kvsnap {

/// What callbacks of a C library are given: a key of this table in place of a pointer, so that one
/// that comes late, after everybody has stopped waiting, finds nothing. Thread-safe.
class LiveTable {
 public:
  static LiveTable& instance() {
    // Never ends: the library's threads may be there when the process does.
    static LiveTable* const table = std::make_unique<LiveTable>().release();
    return *table;
  }
  void add(const std::shared_ptr<void>& object) {
    const std::lock_guard lock(mutex_);
    objects_.emplace(object.get(), object);
  }
  std::shared_ptr<void> find(void* key) {
    const std::lock_guard lock(mutex_);
    const auto found = objects_.find(key);
    return found == objects_.end() ? nullptr : found->second;
  }
  void remove(void* key) {
    std::shared_ptr<void> last;  // ends outside of the lock
    const std::lock_guard lock(mutex_);
    const auto found = objects_.find(key);
    if (found == objects_.end()) return;
    last = std::move(found->second);
    objects_.erase(found);
  }

 private:
  std::mutex mutex_;
  std::map<void*, std::shared_ptr<void>> objects_;  // guarded by mutex_
};

/// A new T that find_live() finds by its address until end_live().
template <typename T>
std::shared_ptr<T> make_live() {
  auto object = std::make_shared<T>();
  LiveTable::instance().add(object);
  return object;
}

/// Null where it has ended. REQUIRES: `key` was given out for a T.
template <typename T>
std::shared_ptr<T> find_live(void* key) {
  return std::static_pointer_cast<T>(LiveTable::instance().find(key));
}

inline void end_live(void* key) {
  LiveTable::instance().remove(key);
}

}  // namespace thaw::kvsnap
