#include "tests/model/model_harness.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <random>
#include <stdexcept>

#include <gtest/gtest.h>

#include "engine/checkpoint/safetensors.h"

namespace thaw::model {

std::string tiny_model_path(const std::string& name) {
  return std::string(THAW_BINARY_DIR) + "/testdata/tiny-" + name + ".gguf";
}

ModelSource gguf_source(const std::string& path) {
  return model_source_from_gguf(
             std::make_shared<const checkpoint::GgufFile>(checkpoint::GgufFile::open(path).value()))
      .value();
}

ModelSource hf_source(const std::string& directory) {
  const auto text = [&directory](const char* name) {
    std::ifstream file(directory + "/" + name);
    return std::string{std::istreambuf_iterator<char>(file), {}};
  };
  return model_source_from_hf(std::make_shared<const checkpoint::SafetensorsFiles>(
                                  checkpoint::SafetensorsFiles::open(directory).value()),
                              text("config.json"), text("generation_config.json"))
      .value();
}

ModelSource model_source(const std::string& path) {
  return std::filesystem::is_directory(path) ? hf_source(path) : gguf_source(path);
}

std::string family_path(const std::string& name) {
  return std::string(THAW_SOURCE_DIR) + "/tests/data/families/" + name;
}

Harness::Harness(const ModelSource& source, const HarnessOptions& options) {
  device_ = ops::CpuDevice::create(options.threads, options.isa).value();
  const LoadedImage loaded =
      build_image(source, {options.mode, options.quantize}, device_->threads()).value();
  image_memory_ = map_fd(loaded.fd.get(), loaded.size_bytes, MapAccess::kReadOnly).value();
  image_ = std::make_unique<checkpoint::WeightImageView>(
      checkpoint::WeightImageView::open(image_memory_.bytes()).value());
  const std::size_t kv_bytes = kv_block_bytes(loaded.config, options.kv_dtype) *
                               static_cast<std::size_t>(options.num_blocks);
  kv_memory_ = std::make_unique<std::byte[]>(kv_bytes);
  // Whatever a kernel reads beyond what was written must not matter.
  std::memset(kv_memory_.get(), 0xff, kv_bytes);
  model_ = make_model(*device_, *image_, {kv_memory_.get(), kv_bytes},
                      {options.kv_dtype, options.max_positions})
               .value();
  blocks_left_ = options.num_blocks;
}

std::vector<BlockId> Harness::take_blocks(int count) {
  if (count > blocks_left_) throw std::runtime_error("harness: out of blocks");
  std::vector<BlockId> blocks;
  for (int i = 0; i < count; ++i)
    blocks.push_back(--blocks_left_);
  return blocks;
}

std::vector<BlockId> Harness::take_table(int num_tokens) {
  return take_blocks((num_tokens + kBlockSize - 1) / kBlockSize);
}

std::vector<std::vector<float>> Harness::step(const Batch& batch) {
  const StepHandle handle = model_->launch(batch).value();
  const StepOutput logits = model_->collect(handle).value();
  std::vector<std::vector<float>> rows;
  for (int i = 0; i < logits.num_rows; ++i)
    rows.emplace_back(logits.row(i).begin(), logits.row(i).end());
  return rows;
}

std::vector<std::vector<float>> all_logits(Harness& harness, std::span<const TokenId> tokens,
                                           int chunk) {
  const int total = static_cast<int>(tokens.size());
  const std::vector<BlockId> table = harness.take_table(total);
  std::vector<std::vector<float>> logits;
  for (int start = 0; start < total;) {
    const int count = chunk == 0 ? total : std::min(chunk, total - start);
    std::vector<int> rows(static_cast<std::size_t>(count));
    std::iota(rows.begin(), rows.end(), 0);
    for (auto& row : harness.step({{{tokens.subspan(start, count), start, table, rows}}}))
      logits.push_back(std::move(row));
    start += count;
  }
  return logits;
}

std::vector<TokenId> random_tokens(int count, int vocab_size, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<TokenId> tokens;
  for (int i = 0; i < count; ++i)
    tokens.push_back(static_cast<TokenId>(random() % static_cast<unsigned>(vocab_size)));
  return tokens;
}

bool same_bits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

void expect_same_rows(const std::vector<std::vector<float>>& expected,
                      const std::vector<std::vector<float>>& actual, const std::string& what) {
  ASSERT_EQ(expected.size(), actual.size()) << what;
  for (std::size_t i = 0; i < expected.size(); ++i)
    ASSERT_TRUE(same_bits(expected[i], actual[i])) << what << ", row " << i;
}

int argmax(std::span<const float> row) {
  return static_cast<int>(std::max_element(row.begin(), row.end()) - row.begin());
}

}  // namespace thaw::model
