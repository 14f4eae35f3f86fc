#include "engine/model/load.h"

#include <set>
#include <vector>

#include "engine/checkpoint/dequantize.h"
#include "engine/model/tensor_list.h"
#include "engine/ops/packed_weight.h"

namespace thaw::model {
namespace {

/// A stored tensor and the name and packing it has in the image.
struct Plan {
  const checkpoint::StoredTensor* stored;
  std::string name;
  ops::Packing packing;
  std::size_t size_bytes;
};

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
Result<void> check_all_used(const ModelSource& source, const std::vector<Plan>& plans) {
  std::set<const checkpoint::StoredTensor*> used;
  for (const Plan& plan : plans)
    used.insert(plan.stored);
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

Result<std::vector<Plan>> plan_tensors(const ModelSource& source, ops::ComputeMode mode) {
  std::vector<Plan> plans;
  for (const TensorRule& rule : tensor_list(source.config)) {
    const auto stored = find(source, rule);
    if (!stored) return stored.error();
    if (rule.is_matrix) {
      const ops::Packing packing = ops::choose_packing((*stored)->dtype, mode);
      plans.push_back(
          {*stored, rule.name, packing, ops::packed_bytes(packing, rule.rows, rule.cols)});
    } else {
      plans.push_back({*stored, rule.name, ops::Packing::kVectorF32,
                       static_cast<std::size_t>(rule.cols) * sizeof(float)});
    }
  }
  if (const auto checked = check_all_used(source, plans); !checked) return checked.error();
  return plans;
}

Result<void> fill(const Plan& plan, std::span<std::byte> out, ThreadPool& threads) {
  const checkpoint::StoredTensor& tensor = *plan.stored;
  if (plan.packing != ops::Packing::kVectorF32) {
    return ops::pack_matrix(tensor.dtype, tensor.data, tensor.rows(), tensor.cols(), plan.packing,
                            out, threads);
  }
  checkpoint::dequantize(tensor.dtype, tensor.data,
                         {reinterpret_cast<float*>(out.data()), out.size() / sizeof(float)});
  return {};
}

}  // namespace

Result<LoadedImage> build_image(const ModelSource& source, ops::ComputeMode mode,
                                ThreadPool& threads) {
  Result<std::vector<Plan>> plans = plan_tensors(source, mode);
  if (!plans) return std::move(plans).error();

  checkpoint::WeightImagePlanner planner;
  for (const Plan& plan : *plans) {
    planner.add(plan.name, static_cast<std::uint32_t>(plan.packing), plan.stored->rows(),
                plan.stored->cols(), plan.size_bytes);
  }
  planner.finish(source.config.to_json(), source.tensors->digest());

  Result<UniqueFd> fd = create_memfd("thaw-weights", planner.total_bytes());
  if (!fd) return std::move(fd).error();
  Result<Mapping> mapping = map_fd(fd->get(), planner.total_bytes(), MapAccess::kReadWrite);
  if (!mapping) return std::move(mapping).error();
  const std::span<std::byte> bytes = mapping->bytes();
  planner.write_header(bytes);
  for (std::size_t i = 0; i < plans->size(); ++i) {
    const checkpoint::WeightEntry& entry = planner.entries()[i];
    const Plan& plan = (*plans)[i];
    if (auto filled = fill(plan, bytes.subspan(entry.offset, entry.size_bytes), threads); !filled) {
      Error error = std::move(filled).error();
      error.message = source.tensors->path() + ": tensor " + std::string(plan.stored->name) + ": " +
                      error.message;
      return error;
    }
  }
  Result<checkpoint::WeightImageView> view = checkpoint::WeightImageView::open(bytes);
  if (!view) return std::move(view).error();
  return LoadedImage{*std::move(fd), static_cast<std::size_t>(planner.total_bytes()), source.config,
                     view->digest()};
}

}  // namespace thaw::model
