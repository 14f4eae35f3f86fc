#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/base/memory_map.h"
#include "engine/checkpoint/gguf.h"
#include "engine/model/load.h"
#include "engine/model/model.h"

namespace thaw::model {

/// `${build}/testdata/tiny-<name>.gguf`, made by scripts/make_tiny_gguf.py.
std::string tiny_model_path(const std::string& name);

/// A GGUF file as a model. Throws where it is none.
ModelSource gguf_source(const std::string& path);
/// A Hugging Face directory as a model. Throws where it is none.
ModelSource hf_source(const std::string& directory);
/// Whichever of both `path` is.
ModelSource model_source(const std::string& path);
/// `tests/data/families/<name>`, made by scripts/fixtures/tiny_families.py.
std::string family_path(const std::string& name);

struct HarnessOptions {
  ops::ComputeMode mode = ops::ComputeMode::kNative;
  ops::KvDType kv_dtype = ops::KvDType::kBF16;
  int threads = 1;
  std::string isa = "";  ///< empty: the best there is
  int num_blocks = 64;
  int max_positions = 0;
  ops::Quantize quantize = ops::Quantize::kNone;
};

/// Nothing is rounded.
inline const HarnessOptions kExact = {.mode = ops::ComputeMode::kExact32,
                                      .kv_dtype = ops::KvDType::kF32};

/// A model with KV memory of its own and a trivial block allocator. Throws where something fails.
class Harness {
 public:
  Harness(const std::string& path, const HarnessOptions& options)
      : Harness(model_source(path), options) {}
  Harness(const ModelSource& source, const HarnessOptions& options);

  Model& model() { return *model_; }
  const ModelConfig& config() const { return model_->config(); }
  const checkpoint::WeightImageView& image() const { return *image_; }
  ops::Device& device() { return *device_; }

  /// The next `count` unused blocks, taken from the top so that tables do not start at block 0.
  std::vector<BlockId> take_blocks(int count);
  /// Blocks for `num_tokens` positions.
  std::vector<BlockId> take_table(int num_tokens);
  /// Launches, collects and copies the logits out: one vector per logit row.
  std::vector<std::vector<float>> step(const Batch& batch);

 private:
  std::unique_ptr<ops::CpuDevice> device_;
  Mapping image_memory_;
  std::unique_ptr<checkpoint::WeightImageView> image_;
  std::unique_ptr<std::byte[]> kv_memory_;
  std::unique_ptr<Model> model_;
  int blocks_left_ = 0;
};

/// Runs `tokens` as one sequence in chunks of `chunk` rows (0: all at once) and returns the logits
/// of every row.
std::vector<std::vector<float>> all_logits(Harness& harness, std::span<const TokenId> tokens,
                                           int chunk);

/// `count` token ids below `vocab_size`, the same for the same seed.
std::vector<TokenId> random_tokens(int count, int vocab_size, unsigned seed);

/// Whether two rows of floats hold the same bits.
bool same_bits(std::span<const float> a, std::span<const float> b);
/// Fails the test where they do not, telling `what` and the row.
void expect_same_rows(const std::vector<std::vector<float>>& expected,
                      const std::vector<std::vector<float>>& actual, const std::string& what);

int argmax(std::span<const float> row);

}  // namespace thaw::model
