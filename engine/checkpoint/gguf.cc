#include "engine/checkpoint/gguf.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <limits>

#include "engine/base/hash.h"
#include "engine/checkpoint/gguf_split.h"
#include "engine/checkpoint/in_quotes.h"

namespace thaw::checkpoint {
namespace {

constexpr std::uint64_t kMaxTensorDimensions = 4;
// Vocabularies stay under a million entries; the cap keeps a damaged count from costing memory.
constexpr std::uint64_t kMaxArrayElements = 1 << 24;
constexpr std::uint64_t kDefaultAlignment = 32;
constexpr std::uint64_t kMaxAlignment = 1 << 20;
// A name's length, the number of dimensions, the type and the offset.
constexpr std::uint64_t kSmallestTensorInfo = 8 + 4 + 4 + 8;

enum ValueType : std::uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12
};

struct TensorType {
  std::uint32_t id;
  std::string_view name;
  std::optional<DType> dtype;  ///< none: known, not supported
};

constexpr TensorType kTensorTypes[] = {
    {0, "F32", DType::kF32},        {1, "F16", DType::kF16},       {2, "Q4_0", DType::kQ4_0},
    {3, "Q4_1", DType::kQ4_1},      {6, "Q5_0", DType::kQ5_0},     {7, "Q5_1", DType::kQ5_1},
    {8, "Q8_0", DType::kQ8_0},      {9, "Q8_1", std::nullopt},     {10, "Q2_K", DType::kQ2_K},
    {11, "Q3_K", DType::kQ3_K},     {12, "Q4_K", DType::kQ4_K},    {13, "Q5_K", DType::kQ5_K},
    {14, "Q6_K", DType::kQ6_K},     {15, "Q8_K", std::nullopt},    {16, "IQ2_XXS", std::nullopt},
    {17, "IQ2_XS", std::nullopt},   {18, "IQ3_XXS", std::nullopt}, {19, "IQ1_S", std::nullopt},
    {20, "IQ4_NL", DType::kIQ4_NL}, {21, "IQ3_S", std::nullopt},   {22, "IQ2_S", std::nullopt},
    {23, "IQ4_XS", std::nullopt},   {24, "I8", std::nullopt},      {25, "I16", std::nullopt},
    {26, "I32", std::nullopt},      {27, "I64", std::nullopt},     {28, "F64", std::nullopt},
    {29, "IQ1_M", std::nullopt},    {30, "BF16", DType::kBF16},    {34, "TQ1_0", std::nullopt},
    {35, "TQ2_0", std::nullopt},    {39, "MXFP4", std::nullopt}};

std::string supported_types() {
  std::string names;
  for (const TensorType& type : kTensorTypes) {
    if (!type.dtype) continue;
    if (!names.empty()) names += ", ";
    names += type.name;
  }
  return names;
}

/// Reads little-endian values off a byte range. The first failure sticks: later reads give zeros
/// and change nothing, so that callers check once where it matters.
class Cursor {
 public:
  Cursor(std::string path, std::span<const std::byte> bytes)
      : path_(std::move(path)), bytes_(bytes) {}

  bool ok() const { return !error_.has_value(); }
  const std::optional<Error>& error() const { return error_; }
  std::size_t position() const { return position_; }
  std::size_t left() const { return bytes_.size() - position_; }

  void fail(Errc code, const std::string& what) {
    if (!error_) error_ = make_error(code, path_ + ": " + what);
  }

  template <typename T>
  T read(const char* what) {
    static_assert(std::endian::native == std::endian::little);
    T value{};
    if (const std::byte* at = take(sizeof(T), what)) std::memcpy(&value, at, sizeof(T));
    return value;
  }

  std::string_view read_string(const char* what) {
    const auto length = read<std::uint64_t>(what);
    const std::byte* at = take(length, what);
    return at == nullptr ? std::string_view()
                         : std::string_view(reinterpret_cast<const char*>(at),
                                            static_cast<std::size_t>(length));
  }

 private:
  const std::byte* take(std::uint64_t size, const char* what) {
    if (!ok()) return nullptr;
    if (size > left()) {
      fail(Errc::kDataLoss, "truncated: " + std::string(what) + " at byte " +
                                std::to_string(position_) + " needs " + std::to_string(size) +
                                " bytes, the file has " + std::to_string(left()) + " left");
      return nullptr;
    }
    const std::byte* at = bytes_.data() + position_;
    position_ += static_cast<std::size_t>(size);
    return at;
  }

  std::string path_;
  std::span<const std::byte> bytes_;
  std::size_t position_ = 0;
  std::optional<Error> error_;
};

std::size_t value_bytes(std::uint32_t type) {
  switch (type) {
    case kU8:
    case kI8:
    case kBool:
      return 1;
    case kU16:
    case kI16:
      return 2;
    case kU32:
    case kI32:
    case kF32:
      return 4;
    default:
      return 8;  // and the length of a string
  }
}

std::int64_t read_integer(Cursor& cursor, std::uint32_t type) {
  const char* what = "a metadata integer";
  switch (type) {
    case kU8:
      return cursor.read<std::uint8_t>(what);
    case kI8:
      return cursor.read<std::int8_t>(what);
    case kU16:
      return cursor.read<std::uint16_t>(what);
    case kI16:
      return cursor.read<std::int16_t>(what);
    case kU32:
      return cursor.read<std::uint32_t>(what);
    case kI32:
      return cursor.read<std::int32_t>(what);
    default:
      return cursor.read<std::int64_t>(what);  // u64 beyond 2^63 wraps; nothing uses such values
  }
}

double read_real(Cursor& cursor, std::uint32_t type) {
  return type == kF32 ? cursor.read<float>("a metadata number")
                      : cursor.read<double>("a metadata number");
}

template <typename T, typename Read>
GgufValue read_elements(std::uint64_t count, const Cursor& cursor, Read read) {
  std::vector<T> values;
  values.reserve(count);
  for (std::uint64_t i = 0; i < count && cursor.ok(); ++i)
    values.push_back(read());
  return values;
}

GgufValue read_array(Cursor& cursor, std::string_view key) {
  const auto type = cursor.read<std::uint32_t>("an array's element type");
  const auto count = cursor.read<std::uint64_t>("an array's length");
  if (!cursor.ok()) return {};
  if (type > kF64 || type == kArray) {
    cursor.fail(Errc::kUnsupported, "metadata key " + in_quotes(key) + " is an array of type " +
                                        std::to_string(type) +
                                        "; supported are arrays of numbers, booleans and strings");
    return {};
  }
  if (count > kMaxArrayElements || count > cursor.left() / value_bytes(type)) {
    cursor.fail(Errc::kDataLoss, "metadata key " + in_quotes(key) + " claims " +
                                     std::to_string(count) + " elements, the file has " +
                                     std::to_string(cursor.left()) + " bytes left");
    return {};
  }
  switch (type) {
    case kString:
      return read_elements<std::string_view>(
          count, cursor, [&] { return cursor.read_string("a metadata string"); });
    case kF32:
    case kF64:
      return read_elements<double>(count, cursor, [&] { return read_real(cursor, type); });
    case kBool:
      return read_elements<bool>(
          count, cursor, [&] { return cursor.read<std::uint8_t>("a metadata boolean") != 0; });
    default:
      return read_elements<std::int64_t>(count, cursor, [&] { return read_integer(cursor, type); });
  }
}

GgufValue read_value(Cursor& cursor, std::string_view key) {
  const auto type = cursor.read<std::uint32_t>("a metadata type");
  switch (type) {
    case kU64:
      return cursor.read<std::uint64_t>("a metadata integer");
    case kF32:
    case kF64:
      return read_real(cursor, type);
    case kBool:
      return cursor.read<std::uint8_t>("a metadata boolean") != 0;
    case kString:
      return cursor.read_string("a metadata string");
    case kArray:
      return read_array(cursor, key);
    default:
      break;
  }
  if (type > kF64) {
    cursor.fail(Errc::kUnsupported, "metadata key " + in_quotes(key) + " has type " +
                                        std::to_string(type) + "; supported are 0 to 12");
    return {};
  }
  return read_integer(cursor, type);
}

struct TensorInfo {
  StoredTensor tensor;
  std::uint64_t offset = 0;  ///< from the start of the tensor data
  std::uint64_t size_bytes = 0;
};

/// Elements and bytes of the tensor; fails on shapes that cannot be.
void size_tensor(Cursor& cursor, TensorInfo& info) {
  const std::string name = in_quotes(info.tensor.name);
  std::uint64_t elements = 1;
  for (const std::int64_t extent : info.tensor.shape) {
    if (extent <= 0 ||
        __builtin_mul_overflow(elements, static_cast<std::uint64_t>(extent), &elements)) {
      return cursor.fail(Errc::kDataLoss, "tensor " + name + " has an impossible shape");
    }
  }
  const auto block = static_cast<std::uint64_t>(dtype_block_elements(info.tensor.dtype));
  if (static_cast<std::uint64_t>(info.tensor.cols()) % block != 0) {
    return cursor.fail(Errc::kDataLoss, "tensor " + name + " has rows of " +
                                            std::to_string(info.tensor.cols()) + " elements; " +
                                            std::string(dtype_name(info.tensor.dtype)) +
                                            " needs a multiple of " + std::to_string(block));
  }
  if (__builtin_mul_overflow(elements / block,
                             static_cast<std::uint64_t>(dtype_block_bytes(info.tensor.dtype)),
                             &info.size_bytes)) {
    cursor.fail(Errc::kDataLoss, "tensor " + name + " has an impossible shape");
  }
}

/// Where `unsupported` is given, a tensor of a type that is not supported is put there.
std::optional<TensorInfo> read_tensor_info(Cursor& cursor,
                                           std::vector<UnsupportedTensor>* unsupported) {
  TensorInfo info;
  info.tensor.name = cursor.read_string("a tensor's name");
  const std::string name = in_quotes(info.tensor.name);
  const auto dimensions = cursor.read<std::uint32_t>("a tensor's number of dimensions");
  if (dimensions > kMaxTensorDimensions) {
    cursor.fail(Errc::kDataLoss, "tensor " + name + " has " + std::to_string(dimensions) +
                                     " dimensions; supported are up to " +
                                     std::to_string(kMaxTensorDimensions));
  }
  for (std::uint32_t i = 0; i < dimensions && cursor.ok(); ++i)
    info.tensor.shape.push_back(cursor.read<std::int64_t>("a tensor's shape"));
  const auto type = cursor.read<std::uint32_t>("a tensor's type");
  info.offset = cursor.read<std::uint64_t>("a tensor's offset");
  if (!cursor.ok()) return info;

  const TensorType* known = nullptr;
  for (const TensorType& candidate : kTensorTypes)
    if (candidate.id == type) known = &candidate;
  if (known == nullptr || !known->dtype) {
    std::string type_name = known != nullptr ? std::string(known->name) : std::to_string(type);
    if (unsupported != nullptr) {
      unsupported->push_back({std::string(info.tensor.name), std::move(type_name)});
      return std::nullopt;
    }
    cursor.fail(Errc::kUnsupported, "tensor " + name + " has type " + type_name +
                                        "; supported are " + supported_types());
    return info;
  }
  info.tensor.dtype = *known->dtype;
  size_tensor(cursor, info);
  return info;
}

/// Magic and version; fails where the file is something else.
void read_magic(Cursor& cursor) {
  const auto magic = cursor.read<std::array<char, 4>>("the magic");
  if (cursor.ok() && std::string_view(magic.data(), 4) != "GGUF") {
    cursor.fail(Errc::kInvalidArgument,
                "not a GGUF file: it starts with " + in_quotes({magic.data(), 4}) + ", not 'GGUF'");
  }
  const auto version = cursor.read<std::uint32_t>("the version");
  if (!cursor.ok() || version == 2 || version == 3) return;
  const bool swapped = version != 0 && (version & 0xffffu) == 0;
  cursor.fail(Errc::kUnsupported,
              swapped ? "big-endian GGUF; supported is little-endian, versions 2 and 3"
                      : "GGUF version " + std::to_string(version) + "; supported are 2 and 3");
}

/// Everything up to the tensors. Gives their number.
std::uint64_t read_head(Cursor& cursor, std::map<std::string_view, GgufValue>& metadata) {
  read_magic(cursor);
  const auto num_tensors = cursor.read<std::uint64_t>("the number of tensors");
  const auto num_values = cursor.read<std::uint64_t>("the number of metadata keys");
  for (std::uint64_t i = 0; i < num_values && cursor.ok(); ++i) {
    const std::string_view key = cursor.read_string("a metadata key");
    GgufValue value = read_value(cursor, key);
    if (cursor.ok() && !metadata.emplace(key, std::move(value)).second)
      cursor.fail(Errc::kDataLoss, "metadata key " + in_quotes(key) + " occurs twice");
  }
  return num_tensors;
}

template <typename T>
const T* get_if(const std::map<std::string_view, GgufValue>& metadata, std::string_view key) {
  const auto found = metadata.find(key);
  return found == metadata.end() ? nullptr : std::get_if<T>(&found->second);
}

}  // namespace

Result<GgufFile> GgufFile::open_part(const std::string& path,
                                     std::vector<UnsupportedTensor>* unsupported) {
  Result<Mapping> mapping = map_file(path);
  if (!mapping) return std::move(mapping).error();
  GgufFile file;
  file.path_ = path;
  file.files_.push_back(path);
  file.mappings_.push_back(*std::move(mapping));
  const std::span<const std::byte> bytes = file.mappings_.front().bytes();
  Cursor cursor(path, bytes);

  const std::uint64_t num_tensors = read_head(cursor, file.metadata_);
  file.metadata_bytes_ = bytes.first(cursor.position());
  if (cursor.ok() && num_tensors > cursor.left() / kSmallestTensorInfo) {
    cursor.fail(Errc::kDataLoss, "truncated: it claims " + std::to_string(num_tensors) +
                                     " tensors and has " + std::to_string(cursor.left()) +
                                     " bytes left");
  }
  std::vector<TensorInfo> infos;
  for (std::uint64_t i = 0; i < num_tensors && cursor.ok(); ++i) {
    auto info = read_tensor_info(cursor, unsupported);
    if (!cursor.ok() || !info) continue;
    const std::string_view name = info->tensor.name;
    if (!file.tensor_index_.emplace(name, infos.size()).second)
      cursor.fail(Errc::kDataLoss, "tensor " + in_quotes(name) + " occurs twice");
    infos.push_back(*std::move(info));
  }
  const std::int64_t wanted = file.get_int("general.alignment").value_or(kDefaultAlignment);
  const auto alignment = static_cast<std::uint64_t>(wanted);
  if (wanted <= 0 || alignment > kMaxAlignment || !std::has_single_bit(alignment))
    cursor.fail(Errc::kDataLoss, "general.alignment is " + std::to_string(wanted) +
                                     "; a power of two up to " + std::to_string(kMaxAlignment) +
                                     " is right");
  if (const auto& error = cursor.error()) return *error;

  const std::uint64_t data_start = (cursor.position() + alignment - 1) / alignment * alignment;
  for (TensorInfo& info : infos) {
    const std::uint64_t available = bytes.size() > data_start ? bytes.size() - data_start : 0;
    if (info.offset > available || info.size_bytes > available - info.offset) {
      return make_error(Errc::kDataLoss,
                        path + ": truncated: tensor " + in_quotes(info.tensor.name) + " needs " +
                            std::to_string(info.size_bytes) + " bytes at byte " +
                            std::to_string(info.offset) + " of the tensor data, which has " +
                            std::to_string(available));
    }
    info.tensor.data = bytes.subspan(data_start + info.offset, info.size_bytes);
    file.tensors_.push_back(std::move(info.tensor));
  }
  return file;
}

Result<GgufFile> GgufFile::open_metadata(std::string path, std::vector<std::byte> bytes) {
  GgufFile file;
  file.path_ = std::move(path);
  file.owned_ = std::move(bytes);
  Cursor cursor(file.path_, file.owned_);
  read_head(cursor, file.metadata_);
  if (const auto& error = cursor.error()) return *error;
  file.metadata_bytes_ = std::span<const std::byte>(file.owned_).first(cursor.position());
  return file;
}

Result<GgufFile> GgufFile::open(const std::string& path,
                                std::vector<UnsupportedTensor>* unsupported) {
  std::vector<UnsupportedTensor> listed;
  auto* const list = unsupported == nullptr ? nullptr : &listed;
  Result<GgufFile> file = open_part(path, list);
  if (file && file->get_int("split.count").value_or(1) != 1) {
    listed.clear();
    file = open_all_parts(path, *file, list);
  }
  if (file && unsupported != nullptr) std::ranges::move(listed, std::back_inserter(*unsupported));
  return file;
}

Result<GgufFile> GgufFile::open_all_parts(const std::string& path, const GgufFile& opened,
                                          std::vector<UnsupportedTensor>* unsupported) {
  const std::int64_t count = opened.get_int("split.count").value_or(1);
  const auto name = parse_split_name(path);
  if (!name || count != name->count) {
    return make_error(Errc::kDataLoss,
                      path + ": one of " + std::to_string(count) +
                          " parts of a model; a name that ends in -0000N-of-0000M.gguf is right, "
                          "with M the number of parts");
  }
  const auto open_numbered = [&](std::uint32_t number) -> Result<GgufFile> {
    const std::string part_path = name->part_path(number);
    std::error_code error;
    if (!std::filesystem::exists(part_path, error)) {
      return make_error(Errc::kNotFound, part_path + " is missing; the model is split over " +
                                             std::to_string(count) + " files");
    }
    Result<GgufFile> part = open_part(part_path, unsupported);
    if (!part) return part;
    const std::int64_t its_count = part->get_int("split.count").value_or(1);
    const std::int64_t its_number = part->get_int("split.no").value_or(-1) + 1;
    if (its_count != count || its_number != number) {
      return make_error(Errc::kDataLoss, part_path + ": it says that it is part " +
                                             std::to_string(its_number) + " of " +
                                             std::to_string(its_count));
    }
    return part;
  };
  Result<GgufFile> model = open_numbered(1);
  if (!model) return model;
  for (std::uint32_t number = 2; number <= name->count; ++number) {
    Result<GgufFile> part = open_numbered(number);
    if (!part) return part;
    if (const auto added = model->add_part(*std::move(part)); !added) return added.error();
  }
  const auto found = static_cast<std::int64_t>(model->tensors_.size() +
                                               (unsupported == nullptr ? 0 : unsupported->size()));
  if (const std::int64_t tensors = model->get_int("split.tensors.count").value_or(found);
      tensors != found) {
    return make_error(Errc::kDataLoss, model->path_ + ": split.tensors.count is " +
                                           std::to_string(tensors) + ", but the parts hold " +
                                           std::to_string(found) + " tensors");
  }
  return model;
}

Result<void> GgufFile::add_part(GgufFile part) {
  for (StoredTensor& tensor : part.tensors_) {
    if (!tensor_index_.emplace(tensor.name, tensors_.size()).second) {
      return make_error(Errc::kDataLoss, part.path_ + ": tensor " + in_quotes(tensor.name) +
                                             " is in another part too");
    }
    tensors_.push_back(std::move(tensor));
  }
  std::ranges::move(part.mappings_, std::back_inserter(mappings_));
  std::ranges::move(part.files_, std::back_inserter(files_));
  return {};
}

const StoredTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto found = tensor_index_.find(name);
  return found == tensor_index_.end() ? nullptr : &tensors_[found->second];
}

std::optional<std::int64_t> GgufFile::get_int(std::string_view key) const {
  if (const auto* value = get_if<std::int64_t>(metadata_, key)) return *value;
  const auto* value = get_if<std::uint64_t>(metadata_, key);
  if (value == nullptr || *value > std::numeric_limits<std::int64_t>::max()) return std::nullopt;
  return static_cast<std::int64_t>(*value);
}

std::optional<double> GgufFile::get_float(std::string_view key) const {
  const auto* value = get_if<double>(metadata_, key);
  return value == nullptr ? std::nullopt : std::optional(*value);
}

std::optional<bool> GgufFile::get_bool(std::string_view key) const {
  const auto* value = get_if<bool>(metadata_, key);
  return value == nullptr ? std::nullopt : std::optional(*value);
}

std::optional<std::string_view> GgufFile::get_string(std::string_view key) const {
  const auto* value = get_if<std::string_view>(metadata_, key);
  return value == nullptr ? std::nullopt : std::optional(*value);
}

const std::vector<std::string_view>* GgufFile::get_strings(std::string_view key) const {
  return get_if<std::vector<std::string_view>>(metadata_, key);
}

const std::vector<std::int64_t>* GgufFile::get_ints(std::string_view key) const {
  return get_if<std::vector<std::int64_t>>(metadata_, key);
}

const std::vector<double>* GgufFile::get_floats(std::string_view key) const {
  return get_if<std::vector<double>>(metadata_, key);
}

Hash128 GgufFile::digest() const {
  if (mappings_.size() == 1) return hash_and_drop(mappings_.front());
  std::string digests;
  for (const Mapping& mapping : mappings_)
    digests += hash_and_drop(mapping).to_hex();
  return hash_text(digests);
}

}  // namespace thaw::checkpoint
