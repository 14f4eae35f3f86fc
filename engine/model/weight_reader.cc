#include "engine/model/weight_reader.h"

namespace thaw::model {

ops::WeightView WeightReader::matrix(const std::string& name, std::int64_t rows,
                                     std::int64_t cols) {
  const checkpoint::WeightEntry* entry = checked(name, rows, cols);
  if (entry == nullptr) return {};
  const auto packing = static_cast<ops::Packing>(entry->packing);
  if (entry->packing < static_cast<std::uint32_t>(ops::Packing::kPanelF32) ||
      entry->packing > static_cast<std::uint32_t>(ops::Packing::kPanelIq4) ||
      entry->size_bytes != ops::packed_bytes(packing, rows, cols)) {
    error_ = make_error(Errc::kDataLoss, "weight image: " + name + " has packing " +
                                             std::to_string(entry->packing) + " and " +
                                             std::to_string(entry->size_bytes) + " bytes");
    return {};
  }
  return {packing, rows, cols, image_.data(*entry).data()};
}

std::span<const float> WeightReader::vector(const std::string& name, std::int64_t size) {
  const checkpoint::WeightEntry* entry = checked(name, 1, size);
  if (entry == nullptr) return {};
  const auto count = static_cast<std::size_t>(size);
  if (entry->packing != static_cast<std::uint32_t>(ops::Packing::kVectorF32) ||
      entry->size_bytes != count * sizeof(float)) {
    error_ = make_error(Errc::kDataLoss, "weight image: " + name + " is not a vector of " +
                                             std::to_string(size) + " float32");
    return {};
  }
  return {reinterpret_cast<const float*>(image_.data(*entry).data()), count};
}

const checkpoint::WeightEntry* WeightReader::checked(const std::string& name, std::int64_t rows,
                                                     std::int64_t cols) {
  if (error_) return nullptr;
  const checkpoint::WeightEntry* entry = image_.find(name);
  if (entry == nullptr) {
    error_ = make_error(Errc::kDataLoss, "weight image: tensor " + name + " is missing");
  } else if (entry->rows != rows || entry->cols != cols) {
    error_ = make_error(Errc::kDataLoss, "weight image: tensor " + name + " is " +
                                             std::to_string(entry->rows) + " x " +
                                             std::to_string(entry->cols) + ", not " +
                                             std::to_string(rows) + " x " + std::to_string(cols));
  }
  return error_ ? nullptr : entry;
}

}  // namespace thaw::model
