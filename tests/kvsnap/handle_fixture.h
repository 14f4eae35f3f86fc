#pragma once

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "kvsnap/handle_directory.h"
#include "tests/kvsnap/crash_io.h"

namespace thaw::kvsnap {

/// A golden handle, written by scripts/fixtures/handle_golden.py.
inline std::string golden_handle(const std::string& name) {
  return std::string(THAW_SOURCE_DIR) + "/tests/data/handle/" + name;
}

inline Bytes file_bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  return {bytes.begin(), bytes.end()};
}

inline Bytes bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text.data(), text.size()));
  return {bytes.begin(), bytes.end()};
}

inline std::string text_of(const Bytes& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// The files of a golden handle, as if they lay in the directory `folder`.
inline Files golden_files(const std::string& name, const std::string& folder) {
  Files files;
  for (const auto& entry : std::filesystem::directory_iterator(golden_handle(name)))
    files[folder + "/" + entry.path().filename().string()] = file_bytes_of(entry.path());
  return files;
}

}  // namespace thaw::kvsnap
