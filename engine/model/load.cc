#include "engine/model/load.h"

#include <algorithm>
#include <set>
#include <span>

#include "engine/base/crc32c.h"
#include "engine/base/file.h"
#include "engine/checkpoint/dequantize.h"
#include "engine/model/cuda_image.h"
#include "engine/model/tensor_list.h"
#include "engine/ops/packed_weight.h"
#include "engine/ops/tile_packing.h"

namespace thaw::model {
namespace {

constexpr std::size_t kSlabBytes = std::size_t{8} << 20;
constexpr std::int64_t kPanelRows = 16;  ///< slabs are whole panels

/// Names from a file may be long, and need not be text.
std::string shortened(std::string_view name) {
  return "'" + std::string(name.substr(0, 96)) + "'";
}

Result<const checkpoint::StoredTensor*> find(const ModelSource& source, const TensorRule& rule) {
  const std::string& name = source.naming == TensorNaming::kGguf ? rule.gguf_name : rule.hf_name;
  const std::string& path = source.tensors->path();
  const checkpoint::StoredTensor* tensor = source.tensors->find_tensor(name);
  if (tensor == nullptr)
    return make_error(Errc::kDataLoss, path + ": tensor " + name + " is missing");
  if (tensor->rows() != rule.rows || tensor->cols() != rule.cols) {
    return make_error(Errc::kDataLoss,
                      path + ": tensor " + name + " is " + std::to_string(tensor->rows()) + " x " +
                          std::to_string(tensor->cols()) + "; the configuration asks for " +
                          std::to_string(rule.rows) + " x " + std::to_string(rule.cols));
  }
  return tensor;
}

/// A tensor that nothing asked for is an error: leaving it out would compute another model.
Result<void> check_all_used(const ModelSource& source, const std::vector<PlannedTensor>& plans) {
  std::set<const checkpoint::StoredTensor*> used;
  for (const PlannedTensor& plan : plans)
    for (const PlannedPart& part : plan.parts)
      used.insert(part.stored);
  for (const checkpoint::StoredTensor& tensor : source.tensors->tensors()) {
    if (used.contains(&tensor)) continue;
    if (source.naming == TensorNaming::kHuggingFace &&
        is_redundant(std::string(tensor.name), source.config)) {
      continue;
    }
    return make_error(Errc::kUnsupported, source.tensors->path() + ": tensor " +
                                              shortened(tensor.name) + " has no place in the " +
                                              source.config.family +
                                              " family as it is supported here");
  }
  return {};
}

/// Adds a stored tensor to its entry: a new one, or the last where both are read together.
void add_part(std::vector<PlannedTensor>& plans, const TensorRule& rule, const CudaPlace& place,
              const checkpoint::StoredTensor* stored, ops::Packing packing) {
  if (plans.empty() || plans.back().name != place.entry) {
    plans.emplace_back();
    plans.back().name = place.entry;
    plans.back().packing = packing;
    plans.back().rows = rule.is_matrix ? 0 : 1;
    plans.back().cols = rule.is_matrix ? rule.cols : 0;
  }
  PlannedTensor& plan = plans.back();
  const bool is_appended = rule.is_matrix && place.placement == ops::cuda::WeightRows::kPlain;
  plan.parts.push_back({stored, place.placement, is_appended ? plan.rows : 0});
  (rule.is_matrix ? plan.rows : plan.cols) += rule.is_matrix ? rule.rows : rule.cols;
  plan.size_bytes = ops::packed_bytes(packing, plan.rows, plan.cols);
}

Result<std::vector<PlannedTensor>> plan_tensors(const ModelSource& source,
                                                const ops::PackingOptions& options) {
  std::vector<PlannedTensor> plans;
  for (const TensorRule& rule : tensor_list(source.config)) {
    const auto stored = find(source, rule);
    if (!stored) return stored.error();
    const ops::Packing packing = rule.is_matrix
                                     ? ops::choose_packing((*stored)->dtype, rule.cols, options)
                                     : ops::Packing::kVectorF32;
    const CudaPlace place =
        options.device == ops::DeviceKind::kCuda ? cuda_place(rule.name) : CudaPlace{rule.name};
    add_part(plans, rule, place, *stored, packing);
  }
  if (const auto checked = check_all_used(source, plans); !checked) return checked.error();
  return plans;
}

/// Rows [first, first + count) of an entry, packed into `out`.
Result<void> pack_rows(const PlannedTensor& plan, std::int64_t first, std::int64_t count,
                       std::span<std::byte> out, ThreadPool& threads) {
  if (plan.packing == ops::Packing::kTiledBF16) {
    std::vector<ops::TilePart> parts;
    parts.reserve(plan.parts.size());
    for (const PlannedPart& part : plan.parts) {
      parts.push_back({part.stored->dtype, part.stored->data, part.stored->rows(), part.placement,
                       part.first_row});
    }
    return ops::pack_tiles(parts, plan.cols, first, count, out, threads);
  }
  const checkpoint::StoredTensor& tensor = *plan.parts.front().stored;
  const std::size_t row_bytes = tensor.data.size() / static_cast<std::size_t>(plan.rows);
  const auto stored = tensor.data.subspan(static_cast<std::size_t>(first) * row_bytes,
                                          static_cast<std::size_t>(count) * row_bytes);
  return ops::pack_matrix(tensor.dtype, stored, count, plan.cols, plan.packing, out, threads);
}

/// Packs one entry and writes it at `offset`. Returns the checksum of what it wrote.
Result<std::uint32_t> write_tensor(const PlannedTensor& plan, int fd, std::uint64_t offset,
                                   std::vector<std::byte>& slab, ThreadPool& threads) {
  std::uint32_t checksum = 0;
  const auto write = [&](std::size_t size) -> Result<void> {
    const auto packed = std::span<const std::byte>(slab).first(size);
    checksum = crc32c(packed, checksum);
    auto written = write_at(fd, packed, offset);
    offset += size;
    return written;
  };
  if (plan.packing == ops::Packing::kVectorF32) {
    slab.resize(std::max(slab.size(), plan.size_bytes));
    auto* to = reinterpret_cast<float*>(slab.data());
    for (const PlannedPart& part : plan.parts) {
      const auto size = static_cast<std::size_t>(part.stored->cols());
      checkpoint::dequantize(part.stored->dtype, part.stored->data, {to, size});
      to += size;
    }
    if (auto written = write(plan.size_bytes); !written) return written.error();
    return checksum;
  }
  const std::size_t panel_bytes = ops::packed_bytes(plan.packing, kPanelRows, plan.cols);
  const std::int64_t slab_rows =
      kPanelRows * static_cast<std::int64_t>(std::max<std::size_t>(1, kSlabBytes / panel_bytes));
  for (std::int64_t first = 0; first < plan.rows; first += slab_rows) {
    const std::int64_t count = std::min(slab_rows, plan.rows - first);
    const std::size_t size = ops::packed_bytes(plan.packing, count, plan.cols);
    slab.resize(std::max(slab.size(), size));
    auto packed = pack_rows(plan, first, count, std::span(slab).first(size), threads);
    if (!packed) return packed.error();
    if (auto written = write(size); !written) return written.error();
  }
  return checksum;
}

std::string stored_names(const PlannedTensor& plan) {
  std::string names;
  for (const PlannedPart& part : plan.parts)
    names += (names.empty() ? "" : ", ") + std::string(part.stored->name);
  return names;
}

}  // namespace

Result<ImagePlan> plan_image(const ModelSource& source, const ops::PackingOptions& packing,
                             const Hash128& source_digest) {
  if (packing.device == ops::DeviceKind::kCuda) {
    if (auto supported = check_cuda_model(source.config, packing); !supported) {
      Error error = supported.error();
      error.message = source.tensors->path() + ": " + error.message;
      return error;
    }
  }
  Result<std::vector<PlannedTensor>> tensors = plan_tensors(source, packing);
  if (!tensors) return std::move(tensors).error();
  ImagePlan plan{&source, *std::move(tensors), {}};
  for (const PlannedTensor& tensor : plan.tensors) {
    plan.layout.add(tensor.name, static_cast<std::uint32_t>(tensor.packing), tensor.rows,
                    tensor.cols, tensor.size_bytes);
  }
  plan.layout.finish(source.config.to_json(), source_digest);
  return plan;
}

Result<void> write_image(ImagePlan& plan, int fd, ThreadPool& threads) {
  const checkpoint::TensorSource& source = *plan.source->tensors;
  std::vector<std::byte> slab;
  for (std::size_t i = 0; i < plan.tensors.size(); ++i) {
    const auto checksum =
        write_tensor(plan.tensors[i], fd, plan.layout.entries()[i].offset, slab, threads);
    if (!checksum) {
      Error error = checksum.error();
      error.message =
          source.path() + ": tensor " + stored_names(plan.tensors[i]) + ": " + error.message;
      return error;
    }
    plan.layout.set_checksum(i, *checksum);
    for (const PlannedPart& part : plan.tensors[i].parts)
      source.release(*part.stored);
  }
  const std::string header = plan.layout.header();
  return write_at(fd, std::as_bytes(std::span(header.data(), header.size())), 0);
}

Result<LoadedImage> build_image(ImagePlan& plan, ThreadPool& threads) {
  const auto size_bytes = static_cast<std::size_t>(plan.layout.total_bytes());
  Result<UniqueFd> fd = create_memfd("thaw-weights", size_bytes);
  if (!fd) return std::move(fd).error();
  if (auto written = write_image(plan, fd->get(), threads); !written) return written.error();
  const Result<Mapping> mapping = map_fd(fd->get(), size_bytes, MapAccess::kReadOnly);
  if (!mapping) return mapping.error();
  const auto view = checkpoint::WeightImageView::open(mapping->bytes());
  if (!view) return view.error();
  return LoadedImage{*std::move(fd), size_bytes, plan.source->config, view->digest()};
}

Result<LoadedImage> build_image(const ModelSource& source, const ops::PackingOptions& packing,
                                ThreadPool& threads) {
  if (auto verified = source.tensors->verify(threads); !verified)
    return std::move(verified).error();
  auto plan = plan_image(source, packing, source.tensors->digest());
  if (!plan) return std::move(plan).error();
  return build_image(*plan, threads);
}

}  // namespace thaw::model
