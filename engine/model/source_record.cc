#include "engine/model/source_record.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstddef>

#include <nlohmann/json.hpp>

namespace thaw::model {
namespace {

using nlohmann::json;

constexpr std::int64_t kSecondNs = 1'000'000'000;
constexpr std::int64_t kClockGrainNs = 2 * kSecondNs;  // the coarsest of file systems

std::int64_t nanoseconds(const timespec& time) {
  return time.tv_sec * kSecondNs + time.tv_nsec;
}

std::optional<Hash128> hash_from_hex(const std::string& text) {
  Hash128 hash;
  const auto digit = [&](std::size_t at) {
    return std::string_view("0123456789abcdef").find(text[at]);
  };
  if (text.size() != 2 * hash.bytes.size()) return std::nullopt;
  for (std::size_t i = 0; i < hash.bytes.size(); ++i) {
    const std::size_t high = digit(2 * i);
    const std::size_t low = digit(2 * i + 1);
    if (high > 15 || low > 15) return std::nullopt;
    hash.bytes[i] = static_cast<std::uint8_t>(high << 4 | low);
  }
  return hash;
}

}  // namespace

std::optional<std::vector<FileStamp>> stamp_files(const std::vector<std::string>& paths) {
  std::vector<FileStamp> stamps;
  for (const std::string& path : paths) {
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0 || !S_ISREG(info.st_mode)) return std::nullopt;
    stamps.push_back({path, info.st_dev, info.st_ino, static_cast<std::uint64_t>(info.st_size),
                      nanoseconds(info.st_mtim), nanoseconds(info.st_ctim)});
  }
  return stamps;
}

std::string SourceRecord::to_json() const {
  json list = json::array();
  for (const FileStamp& file : files) {
    list.push_back({{"path", file.path},
                    {"device", file.device},
                    {"inode", file.inode},
                    {"size_bytes", file.size_bytes},
                    {"modified_ns", file.modified_ns},
                    {"changed_ns", file.changed_ns}});
  }
  const json record = {{"files", std::move(list)},
                       {"digest", digest.to_hex()},
                       {"layout_version", layout_version},
                       {"images", images},
                       {"opened_at_ns", opened_at_ns}};
  // Paths need not be UTF-8.
  return record.dump(2, ' ', false, json::error_handler_t::replace) + "\n";
}

std::optional<SourceRecord> SourceRecord::from_json(std::string_view text) {
  const json record = json::parse(text, nullptr, false);
  try {
    SourceRecord out;
    for (const json& file : record.at("files")) {
      out.files.push_back({file.at("path"), file.at("device"), file.at("inode"),
                           file.at("size_bytes"), file.at("modified_ns"), file.at("changed_ns")});
    }
    const auto digest = hash_from_hex(record.at("digest"));
    if (!digest) return std::nullopt;
    out.digest = *digest;
    out.layout_version = record.at("layout_version");
    out.images = record.at("images");
    out.opened_at_ns = record.at("opened_at_ns");
    return out;
  } catch (const json::exception&) {
    return std::nullopt;
  }
}

bool SourceRecord::describes(const std::vector<FileStamp>& now) const {
  return files == now && std::ranges::all_of(files, [this](const FileStamp& file) {
           return file.changed_ns + kClockGrainNs <= opened_at_ns;
         });
}

}  // namespace thaw::model
