#include "kvsnap/shard_path.h"

#include <algorithm>

namespace thaw::kvsnap {

std::string shard_path(const std::string& path, std::uint32_t rank) {
  if (rank == 0) return path;
  const std::size_t slash = path.rfind('/');
  const std::size_t name = slash == std::string::npos ? 0 : slash + 1;
  // Dots that a name begins with start no extension.
  const std::size_t first = path.find_first_not_of('.', name);
  std::size_t dot = path.rfind('.');
  if (dot == std::string::npos || first == std::string::npos || dot < first) dot = path.size();
  return path.substr(0, dot) + ".rank" + std::to_string(rank) + path.substr(dot);
}

}  // namespace thaw::kvsnap
