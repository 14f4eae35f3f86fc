#include "tests/kvsnap/crash_io.h"

#include <algorithm>
#include <random>
#include <utility>

namespace thaw::kvsnap {
namespace {

constexpr std::size_t kSectorBytes = 512;

void apply_write(Bytes& file, std::uint64_t offset, std::span<const std::byte> data) {
  file.resize(std::max<std::size_t>(file.size(), offset + data.size()));
  std::ranges::copy(data, file.begin() + static_cast<std::ptrdiff_t>(offset));
}

}  // namespace

class CrashFile final : public IoFile {
 public:
  CrashFile(CrashIo& io, std::size_t inode) : io_(&io), inode_(inode) {}

  std::size_t alignment() const override { return 1; }
  Result<void> write(std::span<const std::byte> data, std::uint64_t offset) override {
    const std::lock_guard lock(io_->mutex_);
    if (auto noted = io_->note(
            {CrashIo::Call::Kind::kWrite, inode_, "", "", offset, Bytes(data.begin(), data.end())});
        !noted) {
      return noted;
    }
    apply_write(io_->inodes_[inode_], offset, data);
    return {};
  }
  Result<std::size_t> read(std::span<std::byte> out, std::uint64_t offset) const override {
    const std::lock_guard lock(io_->mutex_);
    const Bytes& file = io_->inodes_[inode_];
    if (offset >= file.size()) return std::size_t{0};
    const std::size_t size = std::min<std::size_t>(out.size(), file.size() - offset);
    std::copy_n(file.begin() + static_cast<std::ptrdiff_t>(offset), size, out.begin());
    return size;
  }
  Result<std::uint64_t> size_bytes() const override {
    const std::lock_guard lock(io_->mutex_);
    return std::uint64_t{io_->inodes_[inode_].size()};
  }
  Result<void> set_size(std::uint64_t size_bytes) override {
    const std::lock_guard lock(io_->mutex_);
    if (auto noted = io_->note({CrashIo::Call::Kind::kSetSize, inode_, "", "", size_bytes, {}});
        !noted) {
      return noted;
    }
    io_->inodes_[inode_].resize(size_bytes);
    return {};
  }
  Result<void> sync() override {
    const std::lock_guard lock(io_->mutex_);
    return io_->note({CrashIo::Call::Kind::kSync, inode_, "", "", 0, {}});
  }
  Result<Mapping> map() const override {
    return make_error(Errc::kUnsupported, "no mapping of memory");
  }

 private:
  CrashIo* io_;
  std::size_t inode_;
};

CrashIo::CrashIo(Files files) {
  for (auto& [name, bytes] : files) {
    names_.emplace(name, inodes_.size());
    inodes_.push_back(std::move(bytes));
  }
  names_at_start_ = names_;
  inodes_at_start_ = inodes_;
}

Result<void> CrashIo::note(Call call) {
  const bool is_removal = call.kind == Call::Kind::kRemove;
  if (fail_from_ && calls_.size() >= *fail_from_ && !is_removal)
    return make_error(Errc::kResourceExhausted, "cannot do it: no space left on the test's disk");
  calls_.push_back(std::move(call));
  return {};
}

Result<std::unique_ptr<IoFile>> CrashIo::create(const std::string& path, std::uint64_t) {
  const std::lock_guard lock(mutex_);
  const std::size_t inode = inodes_.size();
  if (auto noted = note({Call::Kind::kCreate, inode, path, "", 0, {}}); !noted)
    return std::move(noted).error();
  inodes_.emplace_back();
  names_[path] = inode;
  return std::unique_ptr<IoFile>(std::make_unique<CrashFile>(*this, inode));
}

Result<std::unique_ptr<IoFile>> CrashIo::open(const std::string& path) {
  const std::lock_guard lock(mutex_);
  const auto found = names_.find(path);
  if (found == names_.end()) return make_error(Errc::kNotFound, path + ": no such file");
  return std::unique_ptr<IoFile>(std::make_unique<CrashFile>(*this, found->second));
}

Result<void> CrashIo::rename(const std::string& from, const std::string& to) {
  const std::lock_guard lock(mutex_);
  if (auto noted = note({Call::Kind::kRename, 0, from, to, 0, {}}); !noted) return noted;
  names_[to] = names_.at(from);
  names_.erase(from);
  return {};
}

Result<void> CrashIo::remove(const std::string& path) {
  const std::lock_guard lock(mutex_);
  if (auto noted = note({Call::Kind::kRemove, 0, path, "", 0, {}}); !noted) return noted;
  names_.erase(path);
  return {};
}

Result<void> CrashIo::sync_directory_of(const std::string& path) {
  const std::lock_guard lock(mutex_);
  return note({Call::Kind::kSyncDirectory, 0, path, "", 0, {}});
}

Files CrashIo::files() const {
  Files found;
  for (const auto& [name, inode] : names_)
    found.emplace(name, inodes_[inode]);
  return found;
}

Files CrashIo::after_crash(std::size_t crash, std::size_t torn_bytes, Survival survival) const {
  std::mt19937 random(survival.seed);
  const auto survives = [&](bool is_safe) {
    if (is_safe || survival.kind == Survival::Kind::kEverything) return true;
    return survival.kind == Survival::Kind::kRandom && random() % 2 == 0;
  };
  // A call is safe once a sync of its kind came after it, before the crash.
  const auto synced_after = [&](std::size_t at, Call::Kind kind) {
    for (std::size_t i = at + 1; i < crash && !ignores_syncs_; ++i) {
      if (calls_[i].kind == kind &&
          (kind == Call::Kind::kSyncDirectory || calls_[i].inode == calls_[at].inode)) {
        return true;
      }
    }
    return false;
  };
  std::map<std::string, std::size_t> names = names_at_start_;
  std::vector<Bytes> inodes = inodes_at_start_;
  bool names_go_on = true;  // names are lost from the last on: they lie in a journal
  for (std::size_t i = 0; i < crash; ++i) {
    const Call& call = calls_[i];
    if (call.kind == Call::Kind::kCreate) inodes.emplace_back();
    switch (call.kind) {
      case Call::Kind::kCreate:
      case Call::Kind::kRename:
      case Call::Kind::kRemove:
        names_go_on = names_go_on && survives(synced_after(i, Call::Kind::kSyncDirectory));
        if (!names_go_on) break;
        if (call.kind == Call::Kind::kCreate) names[call.path] = call.inode;
        if (call.kind == Call::Kind::kRename) names[call.to] = names.at(call.path);
        if (call.kind != Call::Kind::kCreate) names.erase(call.path);
        break;
      case Call::Kind::kWrite: {
        const bool is_safe = synced_after(i, Call::Kind::kSync);
        for (std::size_t at = 0; at < call.data.size(); at += kSectorBytes) {
          const auto sector =
              std::span(call.data).subspan(at, std::min(kSectorBytes, call.data.size() - at));
          if (survives(is_safe)) apply_write(inodes[call.inode], call.at + at, sector);
        }
        break;
      }
      case Call::Kind::kSetSize:
        if (survives(synced_after(i, Call::Kind::kSync))) inodes[call.inode].resize(call.at);
        break;
      case Call::Kind::kSync:
      case Call::Kind::kSyncDirectory:
        break;
    }
  }
  if (torn_bytes > 0 && crash < calls_.size() && calls_[crash].kind == Call::Kind::kWrite) {
    const Call& call = calls_[crash];
    apply_write(inodes[call.inode], call.at, std::span(call.data).first(torn_bytes));
  }
  Files found;
  for (const auto& [name, inode] : names)
    found.emplace(name, inodes[inode]);
  return found;
}

}  // namespace thaw::kvsnap
