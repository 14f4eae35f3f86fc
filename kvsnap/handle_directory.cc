#include "kvsnap/handle_directory.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <string_view>
#include <utility>

#include "engine/base/file.h"
#include "kvsnap/container_reader.h"
#include "kvsnap/container_writer.h"
#include "kvsnap/shard_path.h"
#include "kvsnap/whole_file.h"

namespace thaw::kvsnap {
namespace {

constexpr std::size_t kHeadBytes = 12;

Error with_path(const std::string& path, Error error) {
  error.message = path + ": " + error.message;
  return error;
}

std::string directory_of(std::string path) {
  while (path.size() > 1 && path.back() == '/')
    path.pop_back();
  const std::filesystem::path whole(path);
  if (whole.filename() != kHandleFile) return path;
  return whole.has_parent_path() ? whole.parent_path().string() : ".";
}

/// Blocks and their description in one file, as the public project wrote without its extension.
Result<KvDescription> decode_old_form(FileIo& io, const std::string& path) {
  const auto file = io.open(path);
  if (!file) return file.error();
  const auto size = (*file)->size_bytes();
  if (!size) return size.error();
  std::string head(static_cast<std::size_t>(std::min<std::uint64_t>(*size, kMaxKvDescriptionBytes)),
                   '\0');
  const auto read = (*file)->read(std::as_writable_bytes(std::span(head.data(), head.size())), 0);
  if (!read) return read.error();
  head.resize(*read);
  const auto text = kv_description_text(head);
  if (!text) return with_path(path, text.error());
  auto kv = KvDescription::decode(head);
  if (!kv) return with_path(path, std::move(kv).error());
  const std::uint64_t payload = *size - kHeadBytes - text->size();
  if (payload != kv->payload_bytes()) {
    return make_error(Errc::kDataLoss,
                      path + ": " + std::to_string(payload) +
                          " bytes of blocks follow their description, which says " +
                          std::to_string(kv->payload_bytes()));
  }
  return kv;
}

Result<std::string> first_bytes(FileIo& io, const std::string& path) {
  const auto file = io.open(path);
  if (!file) return file.error();
  std::string bytes(kHeadBytes, '\0');
  const auto read = (*file)->read(std::as_writable_bytes(std::span(bytes.data(), bytes.size())), 0);
  if (!read) return read.error();
  bytes.resize(*read);
  return bytes;
}

Result<std::uint64_t> file_bytes(FileIo& io, const std::string& path) {
  const auto file = io.open(path);
  if (!file) return file.error();
  return (*file)->size_bytes();
}

/// A name that save() writes, or leaves when it is killed.
bool is_part_of_handle(std::string name) {
  if (name.ends_with(kIncompleteSuffix))
    name.resize(name.size() - std::string_view(kIncompleteSuffix).size());
  if (name == kHandleFile || name == kKvFile || name == kWeightsFile) return true;
  return (name.starts_with("kv.") &&
          (name.ends_with(".thawkv") || name.ends_with(".thawkv.meta"))) ||
         (name.starts_with("weights.rank") && name.ends_with(".thaw"));
}

}  // namespace

Result<HandleDirectory> HandleDirectory::open(FileIo& io, const std::string& path) {
  HandleDirectory directory;
  directory.io_ = &io;
  directory.path_ = directory_of(path);
  const std::string json_path = directory.file(kHandleFile);
  auto text = read_whole_file(io, json_path, kMaxHandleJsonBytes);
  if (!text && text.error().code == Errc::kNotFound) {
    return make_error(Errc::kNotFound,
                      path + " is no handle: a directory that holds " + kHandleFile + " is one");
  }
  if (!text) return std::move(text).error();
  auto handle = Handle::parse(*text);
  if (!handle) return with_path(directory.path_, std::move(handle).error());
  directory.handle_ = *std::move(handle);
  for (std::uint32_t rank = 0; rank < directory.handle_.tensor_parallel_size; ++rank) {
    if (auto opened = directory.open_kv(shard_path(kKvFile, rank), rank == 0); !opened)
      return std::move(opened).error();
  }
  if (auto opened = directory.open_weights(); !opened) return std::move(opened).error();
  if (auto checked = directory.check(); !checked)
    return with_path(directory.path_, std::move(checked).error());
  directory.files_.emplace_back(kHandleFile);
  return directory;
}

Result<void> HandleDirectory::open_kv(const std::string& name, bool is_first) {
  const std::string path = file(name);
  const std::string description_name = name + kKvDescriptionSuffix;
  const auto head = first_bytes(*io_, path);
  if (!head && head.error().code != Errc::kNotFound) return head.error();
  std::uint64_t payload_bytes = 0;
  if (head) {
    const auto size = file_bytes(*io_, path);
    if (!size) return size.error();
    kv_bytes_ += *size;
    files_.push_back(name);
    if (is_kv_description(*head)) {
      auto kv = decode_old_form(*io_, path);
      if (!kv) return std::move(kv).error();
      if (is_first) kv_ = *std::move(kv);
      return {};
    }
    const auto reader = ContainerReader::open(*io_, path);
    if (!reader) return reader.error();
    for (const Region& region : reader->regions())
      if (region.kind == RegionKind::kKvBlock) payload_bytes += region.size_bytes;
  }
  const std::string description_path = file(description_name);
  const auto text = read_whole_file(*io_, description_path, kMaxKvDescriptionBytes);
  if (!text && text.error().code != Errc::kNotFound) return text.error();
  if (!text) {
    return head ? Result<void>(make_error(Errc::kDataLoss, description_path +
                                                               " is missing: it says what the "
                                                               "blocks are"))
                : Result<void>();
  }
  auto kv = KvDescription::decode(*text);
  if (!kv) return with_path(description_path, std::move(kv).error());
  if (head && kv->payload_bytes() != payload_bytes) {
    return make_error(Errc::kDataLoss, path + " holds " + std::to_string(payload_bytes) +
                                           " bytes of blocks; its description says " +
                                           std::to_string(kv->payload_bytes()));
  }
  files_.push_back(description_name);
  if (is_first) kv_ = *std::move(kv);
  return {};
}

Result<void> HandleDirectory::open_weights() {
  if (!handle_.has_weights) return {};
  for (std::uint32_t rank = 0; rank < handle_.tensor_parallel_size; ++rank) {
    const std::string name = shard_path(kWeightsFile, rank);
    const auto reader = ContainerReader::open(*io_, file(name));
    if (!reader && reader.error().code == Errc::kNotFound) continue;
    if (!reader) return reader.error();
    weights_bytes_ += reader->file_bytes();
    files_.push_back(name);
  }
  return {};
}

/// What handle.json and the description of the blocks both say.
Result<void> HandleDirectory::check() const {
  const auto differ = [](const std::string& what, const auto& ours, const auto& theirs) {
    return make_error(Errc::kDataLoss,
                      std::string(kHandleFile) + " says " + what + " " + std::to_string(ours) +
                          ", the description of its blocks " + std::to_string(theirs));
  };
  if (!kv_) return {};
  const KvDescription& kv = *kv_;
  if (handle_.num_kv_blocks != kv.num_blocks)
    return differ("num_kv_blocks", handle_.num_kv_blocks, kv.num_blocks);
  if (kv.num_blocks == 0) return {};
  if (handle_.num_layers != kv.num_layers)
    return differ("num_layers", handle_.num_layers, kv.num_layers);
  if (handle_.block_shape != kv.block_shape) {
    return make_error(Errc::kDataLoss, std::string(kHandleFile) +
                                           " and the description of its blocks differ in "
                                           "block_shape");
  }
  const auto last = static_cast<std::int64_t>(*std::ranges::max_element(kv.block_ids));
  if (handle_.max_block_id != last) return differ("max_block_id", handle_.max_block_id, last);
  if (handle_.prefix_tokens > kv.num_blocks * kv.block_size)
    return differ("prefix_tokens", handle_.prefix_tokens, kv.num_blocks * kv.block_size);
  return {};
}

Result<bool> HandleDirectory::verify(ThreadPool& threads) const {
  bool all_have = true;
  const auto is_here = [&](const std::string& name) {
    return std::ranges::find(files_, name) != files_.end();
  };
  for (const char* base : {kKvFile, kWeightsFile}) {
    if (!is_here(base)) continue;
    for (std::uint32_t rank = 0; rank < handle_.tensor_parallel_size; ++rank) {
      const std::string name = shard_path(base, rank);
      if (!is_here(name)) {
        return make_error(Errc::kDataLoss, file(name) + " is missing; the handle is of " +
                                               std::to_string(handle_.tensor_parallel_size) +
                                               " ranks");
      }
      const auto head = first_bytes(*io_, file(name));
      if (!head) return head.error();
      if (is_kv_description(*head)) {
        all_have = false;
        continue;
      }
      const auto reader = ContainerReader::open(*io_, file(name));
      if (!reader) return reader.error();
      if (auto verified = reader->verify(threads); !verified) return std::move(verified).error();
      all_have = all_have && reader->has_checksums();
    }
  }
  return all_have;
}

Result<void> HandleDirectory::save(const std::string& target, const Handle& handle,
                                   bool with_payload) const {
  Handle written = handle;
  written.has_weights = with_payload && weights_bytes_ > 0;
  std::vector<HandlePart> parts;
  for (const std::string& name : files_)
    if (name != kHandleFile && (with_payload || name.ends_with(kKvDescriptionSuffix)))
      parts.push_back({file(name), name});
  return write_handle(*io_, target, written, parts);
}

Result<void> write_handle(FileIo& io, const std::string& target, const Handle& handle,
                          const std::vector<HandlePart>& parts) {
  const auto json = handle.to_json();
  if (!json) return json.error();
  const std::string json_path = target + "/" + kHandleFile;
  const auto copy = [&]() -> Result<void> {
    for (const HandlePart& part : parts)
      if (auto copied = copy_whole_file(io, part.from, target + "/" + part.name); !copied)
        return copied;
    return write_whole_file(io, json_path, *json);
  };
  auto copied = copy();
  if (copied) return {};
  // First what makes it a handle. What is not there cannot be removed, which is as well.
  static_cast<void>(io.remove(json_path));
  static_cast<void>(io.sync_directory_of(json_path));
  for (const HandlePart& part : parts)
    static_cast<void>(io.remove(target + "/" + part.name));
  return copied;
}

bool has_handle(FileIo& io, const std::string& directory) {
  const auto file = io.open(directory + "/" + kHandleFile);
  return file || file.error().code != Errc::kNotFound;
}

Result<void> make_handle_directory(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const bool is_new = fs::create_directories(path, error);
  if (error) return io_error("cannot make the directory " + path, error.value());
  if (is_new) {
    const std::string parent = fs::path(directory_of(path)).parent_path().string();
    return sync_directory(parent.empty() ? "." : parent);
  }
  for (fs::directory_iterator entry(path, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename().string();
    if (name != kHandleFile && is_part_of_handle(name)) continue;
    std::string message = path;
    message.append(" is there already and holds ").append(name);
    if (name == kHandleFile) message += ": it is a handle";
    message += "; name a directory that does not exist yet";
    return make_error(Errc::kInvalidArgument, std::move(message));
  }
  if (error) return io_error("cannot read the directory " + path, error.value());
  return {};
}

}  // namespace thaw::kvsnap
