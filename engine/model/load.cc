#include "engine/model/load.h"

#include <optional>
#include <vector>

#include "engine/checkpoint/dequantize.h"
#include "engine/ops/packed_weight.h"

namespace thaw::model {
namespace {

/// A tensor of the file and the name, shape and packing it has in the image.
struct Plan {
  const checkpoint::StoredTensor* source;
  std::string name;
  ops::Packing packing;
  std::size_t size_bytes;
};

/// Collects the tensors of a Llama file, checking each shape; the first error sticks.
class TensorPlanner {
 public:
  TensorPlanner(const checkpoint::GgufFile& file, ops::ComputeMode mode)
      : file_(file), mode_(mode) {}

  /// A [rows, cols] matrix, stored with the inputs first.
  void matrix(const std::string& gguf_name, const std::string& name, std::int64_t rows,
              std::int64_t cols) {
    const checkpoint::StoredTensor* tensor = checked(gguf_name, rows, cols);
    if (tensor == nullptr) return;
    const ops::Packing packing = ops::choose_packing(tensor->dtype, mode_);
    plans_.push_back({tensor, name, packing, ops::packed_bytes(packing, rows, cols)});
  }

  void vector(const std::string& gguf_name, const std::string& name, std::int64_t size) {
    const checkpoint::StoredTensor* tensor = checked(gguf_name, 1, size);
    if (tensor == nullptr) return;
    plans_.push_back(
        {tensor, name, ops::Packing::kVectorF32, static_cast<std::size_t>(size) * sizeof(float)});
  }

  /// The plans; an error where a tensor was missing or misshapen, or where the file holds one that
  /// nothing asked for: leaving it out would compute another model.
  Result<std::vector<Plan>> finish() {
    if (error_) return *error_;
    if (plans_.size() == file_.tensors().size()) return std::move(plans_);
    for (const checkpoint::StoredTensor& tensor : file_.tensors()) {
      bool used = false;
      for (const Plan& plan : plans_)
        used = used || plan.source == &tensor;
      if (!used) {
        return make_error(Errc::kUnsupported,
                          file_.path() + ": tensor '" + std::string(tensor.name.substr(0, 64)) +
                              "' has no place in the llama family as it is supported here");
      }
    }
    return std::move(plans_);
  }

 private:
  const checkpoint::StoredTensor* checked(const std::string& name, std::int64_t rows,
                                          std::int64_t cols) {
    if (error_) return nullptr;
    const checkpoint::StoredTensor* tensor = file_.find_tensor(name);
    if (tensor == nullptr) {
      error_ = make_error(Errc::kDataLoss, file_.path() + ": tensor " + name + " is missing");
      return nullptr;
    }
    if (tensor->rows() != rows || tensor->cols() != cols) {
      error_ =
          make_error(Errc::kDataLoss,
                     file_.path() + ": tensor " + name + " is " + std::to_string(tensor->rows()) +
                         " x " + std::to_string(tensor->cols()) + "; the configuration asks for " +
                         std::to_string(rows) + " x " + std::to_string(cols));
      return nullptr;
    }
    return tensor;
  }

  const checkpoint::GgufFile& file_;
  ops::ComputeMode mode_;
  std::vector<Plan> plans_;
  std::optional<Error> error_;
};

Result<std::vector<Plan>> plan_tensors(const checkpoint::GgufFile& file, const ModelConfig& config,
                                       ops::ComputeMode mode) {
  TensorPlanner planner(file, mode);
  const std::int64_t hidden = config.hidden_size;
  const std::int64_t ffn = config.intermediate_size;
  const std::int64_t q_size = std::int64_t{config.num_heads} * config.head_dim;
  const std::int64_t kv_size = std::int64_t{config.num_kv_heads} * config.head_dim;
  planner.matrix("token_embd.weight", "token_embedding", config.vocab_size, hidden);
  for (int i = 0; i < config.num_layers; ++i) {
    const std::string from = "blk." + std::to_string(i) + ".";
    const std::string to = "layers." + std::to_string(i) + ".";
    planner.vector(from + "attn_norm.weight", to + "attention_norm", hidden);
    planner.matrix(from + "attn_q.weight", to + "q", q_size, hidden);
    planner.matrix(from + "attn_k.weight", to + "k", kv_size, hidden);
    planner.matrix(from + "attn_v.weight", to + "v", kv_size, hidden);
    planner.matrix(from + "attn_output.weight", to + "o", hidden, q_size);
    planner.vector(from + "ffn_norm.weight", to + "ffn_norm", hidden);
    planner.matrix(from + "ffn_gate.weight", to + "gate", ffn, hidden);
    planner.matrix(from + "ffn_up.weight", to + "up", ffn, hidden);
    planner.matrix(from + "ffn_down.weight", to + "down", hidden, ffn);
  }
  planner.vector("output_norm.weight", "output_norm", hidden);
  if (!config.tied_embeddings) planner.matrix("output.weight", "head", config.vocab_size, hidden);
  if (file.find_tensor("rope_freqs.weight") != nullptr)
    planner.vector("rope_freqs.weight", "rope_frequency_factors", config.rotary_dim / 2);
  return planner.finish();
}

Result<void> fill(const Plan& plan, std::span<std::byte> out, ThreadPool& threads) {
  const checkpoint::StoredTensor& tensor = *plan.source;
  if (plan.packing != ops::Packing::kVectorF32) {
    return ops::pack_matrix(tensor.dtype, tensor.data, tensor.rows(), tensor.cols(), plan.packing,
                            out, threads);
  }
  checkpoint::dequantize(tensor.dtype, tensor.data,
                         {reinterpret_cast<float*>(out.data()), out.size() / sizeof(float)});
  return {};
}

}  // namespace

Result<LoadedImage> build_image(const checkpoint::GgufFile& file, ops::ComputeMode mode,
                                ThreadPool& threads) {
  Result<ModelConfig> config = config_from_gguf(file);
  if (!config) return std::move(config).error();
  Result<std::vector<Plan>> plans = plan_tensors(file, *config, mode);
  if (!plans) return std::move(plans).error();

  checkpoint::WeightImagePlanner planner;
  for (const Plan& plan : *plans) {
    planner.add(plan.name, static_cast<std::uint32_t>(plan.packing), plan.source->rows(),
                plan.source->cols(), plan.size_bytes);
  }
  planner.finish(config->to_json(), file.digest());

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
      error.message =
          file.path() + ": tensor " + std::string(plan.source->name) + ": " + error.message;
      return error;
    }
  }
  Result<checkpoint::WeightImageView> view = checkpoint::WeightImageView::open(bytes);
  if (!view) return std::move(view).error();
  return LoadedImage{*std::move(fd), static_cast<std::size_t>(planner.total_bytes()),
                     *std::move(config), view->digest()};
}

}  // namespace thaw::model
