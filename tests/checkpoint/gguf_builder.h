#pragma once

#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

namespace thaw::checkpoint {

/// Bytes of a GGUF file, put together field by field so that tests can get each one wrong.
class GgufBuilder {
 public:
  template <typename T>
  GgufBuilder& put(T value) {
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  GgufBuilder& text(std::string_view text) {
    put<std::uint64_t>(text.size());
    bytes_.append(text);
    return *this;
  }
  GgufBuilder& header(std::uint64_t num_tensors, std::uint64_t num_values,
                      std::uint32_t version = 3) {
    bytes_ += "GGUF";
    return put(version).put(num_tensors).put(num_values);
  }
  GgufBuilder& tensor(std::string_view name, const std::vector<std::uint64_t>& shape,
                      std::uint32_t type, std::uint64_t offset) {
    text(name).put(static_cast<std::uint32_t>(shape.size()));
    for (const std::uint64_t extent : shape)
      put(extent);
    return put(type).put(offset);
  }
  /// Pads to 32 bytes and adds a tensor's bytes.
  GgufBuilder& data(std::string_view content) {
    bytes_.append((32 - bytes_.size() % 32) % 32, '\0');
    bytes_.append(content);
    return *this;
  }
  /// Pads to 32 bytes and adds `size` bytes of tensor data.
  GgufBuilder& data(std::size_t size) {
    bytes_.append((32 - bytes_.size() % 32) % 32 + size, '\x01');
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::string bytes_;
};

/// A file that is removed at the end of its scope.
class ScratchFile {
 public:
  explicit ScratchFile(std::string_view bytes)
      : path_((std::filesystem::temp_directory_path() /
               ("thaw-gguf-test-" + std::to_string(::getpid())))
                  .string()) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc)
        .write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  ScratchFile(const ScratchFile&) = delete;
  ScratchFile& operator=(const ScratchFile&) = delete;
  ~ScratchFile() { std::filesystem::remove(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace thaw::checkpoint
