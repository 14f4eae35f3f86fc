#include "engine/checkpoint/text_file.h"

#include <filesystem>

#include "engine/base/memory_map.h"

namespace thaw::checkpoint {

Result<std::string> read_text_file(const std::string& path, std::size_t max_bytes) {
  std::error_code error;
  if (!std::filesystem::exists(path, error) && !error)
    return make_error(Errc::kNotFound, path + " does not exist");
  Result<Mapping> mapping = map_file(path);
  if (!mapping) return std::move(mapping).error();
  if (mapping->size_bytes() > max_bytes) {
    return make_error(Errc::kDataLoss, path + " has " + std::to_string(mapping->size_bytes()) +
                                           " bytes; at most " + std::to_string(max_bytes) +
                                           " are right for such a file");
  }
  return std::string(reinterpret_cast<const char*>(mapping->data()), mapping->size_bytes());
}

}  // namespace thaw::checkpoint
