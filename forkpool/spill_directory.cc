#include "forkpool/spill_directory.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <utility>

#include "engine/base/log.h"
#include "forkpool/ledger.h"
#include "kvsnap/container_writer.h"
#include "kvsnap/kv_description.h"
#include "kvsnap/kv_file.h"

namespace thaw::forkpool {
namespace {

namespace fs = std::filesystem;

constexpr mode_t kDirectoryMode = 0700;  // KV tells what was said
// A file that was just used is worth more than any other, not infinitely more.
constexpr double kNewSeconds = 60;
constexpr double kOrphanSeconds = 3600;

bool is_trunk_name(const std::string& name) {
  return name.size() == 32 + kvsnap::kKvFileSuffix.size() &&
         name.ends_with(kvsnap::kKvFileSuffix) && name.find_first_not_of("0123456789abcdef") == 32;
}

double age_of(const struct stat& info) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::max(
      0.0, std::chrono::duration<double>(now).count() - static_cast<double>(info.st_mtim.tv_sec));
}

}  // namespace

std::string SpillDirectory::path_of(const Hash128& last_block) const {
  return directory_ + "/" + last_block.to_hex() + std::string(kvsnap::kKvFileSuffix);
}

bool SpillDirectory::holds(const std::string& path) const {
  struct stat info {};
  return ::lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode);
}

Result<SpillDirectory::Scan> SpillDirectory::scan(ThreadPool& threads) {
  std::error_code error;
  fs::create_directories(fs::path(directory_).parent_path(), error);
  if (::mkdir(directory_.c_str(), kDirectoryMode) != 0 && errno != EEXIST)
    return io_error("cannot create the spill directory " + directory_, errno);
  std::vector<std::string> names;
  for (auto entry = fs::directory_iterator(directory_, error);
       !error && entry != fs::directory_iterator(); entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  if (error) return io_error("cannot list the spill directory " + directory_, error.value());
  std::ranges::sort(names);

  Scan scan;
  for (const std::string& name : names) {
    const std::string path = directory_ + "/" + name;
    if (name.ends_with(kvsnap::kIncompleteSuffix)) {
      // Who can create it finds nobody alive writing it.
      if (io_.create(path, 0)) static_cast<void>(io_.remove(path));
      continue;
    }
    if (name.ends_with(kvsnap::kKvDescriptionSuffix)) {
      struct stat info {};
      const std::string whose = path.substr(0, path.size() - std::string(".meta").size());
      if (!holds(whose) && ::lstat(path.c_str(), &info) == 0 && age_of(info) > kOrphanSeconds)
        static_cast<void>(io_.remove(path));
      continue;
    }
    if (!is_trunk_name(name) || !holds(path)) continue;
    auto file = kvsnap::KvFile::open(io_, path, threads);
    if (!file) {
      if (file.error().code == Errc::kNotFound) continue;  // another server's budget
      logger("pool")->warn("spilled KV refused: {}", file.error().to_string());
      if (file.error().code == Errc::kIo) continue;
      ++scan.num_refused;
      remove(path);
      continue;
    }
    File found{path, file->document(), {}};
    PrefixNames blocks(found.document.cache_root, found.document.token_ids);
    for (std::size_t block = 0; block < blocks.num_blocks(); ++block)
      found.names.push_back(blocks.name(block));
    if (path_of(found.names.back()) != path) {
      logger("pool")->warn("spilled KV refused: {} holds other tokens than its name says", path);
      ++scan.num_refused;
      remove(path);
      continue;
    }
    {
      const std::scoped_lock lock(mutex_);
      prefill_seconds_[path] = found.document.prefill_seconds;
    }
    scan.files.push_back(std::move(found));
  }
  return scan;
}

std::vector<SpillDirectory::Entry> SpillDirectory::list() const {
  std::vector<Entry> entries;
  std::error_code error;
  for (auto entry = fs::directory_iterator(directory_, error);
       !error && entry != fs::directory_iterator(); entry.increment(error)) {
    struct stat info {};
    if (!is_trunk_name(entry->path().filename().string())) continue;
    const std::string path = entry->path().string();
    if (::lstat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) continue;
    struct stat sidecar {};
    const bool has_sidecar = ::lstat((path + kvsnap::kKvDescriptionSuffix).c_str(), &sidecar) == 0;
    entries.push_back({path,
                       static_cast<std::uint64_t>(info.st_size) +
                           (has_sidecar ? static_cast<std::uint64_t>(sidecar.st_size) : 0),
                       age_of(info)});
  }
  return entries;
}

/// Of a file that another server wrote it is read, once.
double SpillDirectory::prefill_seconds(const std::string& path) {
  {
    const std::scoped_lock lock(mutex_);
    if (const auto known = prefill_seconds_.find(path); known != prefill_seconds_.end())
      return known->second;
  }
  ThreadPool one(1);
  const auto file = kvsnap::KvFile::open(io_, path, one);
  const double seconds = file ? file->document().prefill_seconds : 0;
  const std::scoped_lock lock(mutex_);
  prefill_seconds_[path] = seconds;
  return seconds;
}

Result<std::vector<std::string>> SpillDirectory::make_room(std::uint64_t bytes,
                                                           const std::set<std::string>& pinned,
                                                           const std::set<std::string>& last) {
  struct Candidate {
    Entry entry;
    double worth = 0;
    bool is_last = false;
  };
  std::vector<Candidate> candidates;
  std::uint64_t used = 0;
  std::uint64_t removable = 0;
  for (Entry& entry : list()) {
    used += entry.bytes;
    if (pinned.contains(entry.path)) continue;
    removable += entry.bytes;
    const bool is_last = last.contains(entry.path);
    candidates.push_back({std::move(entry), 0, is_last});
  }
  if (used <= max_bytes_ && bytes <= max_bytes_ - used) return std::vector<std::string>();
  if (used - removable + bytes > max_bytes_) {
    return make_error(Errc::kResourceExhausted,
                      "KV of " + std::to_string(bytes) + " bytes does not fit into the " +
                          std::to_string(max_bytes_) + " of " + directory_ + " (--spill-bytes), " +
                          std::to_string(used - removable) + " of which are pinned");
  }
  for (Candidate& candidate : candidates) {
    candidate.worth =
        prefill_seconds(candidate.entry.path) /
        (static_cast<double>(candidate.entry.bytes) * (candidate.entry.age_seconds + kNewSeconds));
  }
  std::ranges::sort(candidates, [](const Candidate& a, const Candidate& b) {
    if (a.is_last != b.is_last) return b.is_last;
    return a.worth != b.worth ? a.worth < b.worth : a.entry.path < b.entry.path;
  });
  std::vector<std::string> gone;
  for (const Candidate& candidate : candidates) {
    if (used + bytes <= max_bytes_) break;
    logger("pool")->info("spilled KV of {} bytes removed: {}", candidate.entry.bytes,
                         candidate.entry.path);
    remove(candidate.entry.path);
    used -= candidate.entry.bytes;
    gone.push_back(candidate.entry.path);
  }
  return gone;
}

void SpillDirectory::touch(const std::string& path) const {
  static_cast<void>(::utimensat(AT_FDCWD, path.c_str(), nullptr, 0));  // it may be gone
}

void SpillDirectory::remove(const std::string& path) {
  // Whoever reads it goes on; whoever looks for it prefills.
  static_cast<void>(io_.remove(path));
  static_cast<void>(io_.remove(path + kvsnap::kKvDescriptionSuffix));
  const std::scoped_lock lock(mutex_);
  prefill_seconds_.erase(path);
}

SpillDirectory::Usage SpillDirectory::usage() const {
  Usage usage;
  for (const Entry& entry : list()) {
    ++usage.files;
    usage.bytes += entry.bytes;
  }
  return usage;
}

}  // namespace thaw::forkpool
