#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace thaw::checkpoint {

/// Bytes of a safetensors file from a header as it stands, right or wrong.
inline std::string safetensors_bytes(std::string_view header, std::string_view data) {
  const std::uint64_t length = header.size();
  std::string bytes(reinterpret_cast<const char*>(&length), sizeof(length));
  return bytes.append(header).append(data);
}

/// Puts a right file together, tensor by tensor.
class SafetensorsBuilder {
 public:
  /// `shape` as JSON: "[2,3]".
  SafetensorsBuilder& tensor(std::string_view name, std::string_view dtype, std::string_view shape,
                             std::string_view data) {
    header_ += header_.empty() ? "{" : ",";
    header_.append("\"").append(name).append("\":{\"dtype\":\"").append(dtype);
    header_.append("\",\"shape\":").append(shape).append(",\"data_offsets\":[");
    header_ += std::to_string(data_.size()) + "," + std::to_string(data_.size() + data.size());
    header_ += "]}";
    data_ += data;
    return *this;
  }
  std::string bytes() const { return safetensors_bytes(header_ + "}", data_); }

 private:
  std::string header_;
  std::string data_;
};

}  // namespace thaw::checkpoint
