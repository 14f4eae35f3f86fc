#pragma once

#include <algorithm>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "kvsnap/file_io.h"

namespace thaw::kvsnap {

/// A few files in memory.
class FuzzDirectory final : public FileIo {
 public:
  std::map<std::string, std::string> files;

  Result<std::unique_ptr<IoFile>> create(const std::string& path, std::uint64_t) override {
    files[path].clear();
    return open(path);
  }
  Result<std::unique_ptr<IoFile>> open(const std::string& path) override {
    const auto found = files.find(path);
    if (found == files.end()) return make_error(Errc::kNotFound, path + ": no such file");
    return std::unique_ptr<IoFile>(std::make_unique<File>(found->second));
  }
  Result<void> rename(const std::string& from, const std::string& to) override {
    files[to] = std::exchange(files[from], "");
    files.erase(from);
    return {};
  }
  Result<void> remove(const std::string& path) override {
    files.erase(path);
    return {};
  }
  Result<void> sync_directory_of(const std::string&) override { return {}; }

 private:
  class File final : public IoFile {
   public:
    explicit File(std::string& bytes) : bytes_(&bytes) {}
    std::size_t alignment() const override { return 1; }
    Result<void> write(std::span<const std::byte> data, std::uint64_t offset) override {
      if (bytes_->size() < offset + data.size()) bytes_->resize(offset + data.size());
      std::ranges::copy(data, std::as_writable_bytes(std::span(*bytes_)).begin() +
                                  static_cast<std::ptrdiff_t>(offset));
      return {};
    }
    Result<std::size_t> read(std::span<std::byte> out, std::uint64_t offset) const override {
      if (offset >= bytes_->size()) return std::size_t{0};
      const std::size_t size = std::min<std::size_t>(out.size(), bytes_->size() - offset);
      std::ranges::copy(std::as_bytes(std::span(*bytes_)).subspan(offset, size), out.begin());
      return size;
    }
    Result<std::uint64_t> size_bytes() const override { return std::uint64_t{bytes_->size()}; }
    Result<void> set_size(std::uint64_t size_bytes) override {
      bytes_->resize(size_bytes);
      return {};
    }
    Result<void> sync() override { return {}; }
    Result<Mapping> map() const override {
      return make_error(Errc::kUnsupported, "no mapping of memory");
    }

   private:
    std::string* bytes_;
  };
};

}  // namespace thaw::kvsnap
