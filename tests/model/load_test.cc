// Files that cannot be served say why; images and configurations survive their round trips.

#include "engine/model/load.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/model/model_harness.h"

namespace thaw::model {
namespace {

using testing::HasSubstr;

std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The tiny f32 model with the first `from` replaced by `to`, of the same length.
std::string changed(const std::string& from, const std::string& to) {
  std::string bytes = read_bytes(tiny_model_path("f32"));
  const std::size_t at = bytes.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  EXPECT_EQ(from.size(), to.size());
  return bytes.replace(at, from.size(), to);
}

std::string u32(std::uint32_t value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

/// The error that loading `bytes` gives.
Error error_of(const std::string& bytes) {
  const std::string path =
      (std::filesystem::temp_directory_path() / ("thaw-load-test-" + std::to_string(::getpid())))
          .string();
  std::ofstream(path, std::ios::binary) << bytes;
  ThreadPool threads(1);
  const auto source = model_source_from_gguf(
      std::make_shared<const checkpoint::GgufFile>(checkpoint::GgufFile::open(path).value()));
  const auto image = source ? build_image(*source, {ops::ComputeMode::kNative}, threads)
                            : Result<LoadedImage>(source.error());
  std::filesystem::remove(path);
  EXPECT_FALSE(image) << "it loaded";
  if (image) return {};
  EXPECT_THAT(image.error().message, HasSubstr(path));
  return image.error();
}

TEST(Load, NamesWhatItCannotServe) {
  const Error architecture = error_of(changed("llama", "bloom"));
  EXPECT_EQ(architecture.code, Errc::kUnsupported);
  EXPECT_THAT(architecture.message,
              HasSubstr("'bloom' is not supported; supported are llama, qwen2, qwen3 and smollm3"));

  EXPECT_THAT(error_of(changed("blk.1.attn_k.weight", "blk.1.attn_x.weight")).message,
              HasSubstr("tensor blk.1.attn_k.weight is missing"));
  EXPECT_THAT(error_of(changed("llama.block_count", "llama.block_xxxxx")).message,
              HasSubstr("llama.block_count is missing"));
  const std::string blocks = "llama.block_count" + u32(4);
  EXPECT_THAT(error_of(changed(blocks + u32(3), blocks + u32(2))).message,
              HasSubstr("'blk.2.attn_norm.weight' has no place"));
  EXPECT_THAT(error_of(changed(blocks + u32(3), blocks + u32(4))).message,
              HasSubstr("tensor blk.3.attn_norm.weight is missing"));
  const std::string heads = "llama.attention.head_count" + u32(4);
  EXPECT_THAT(error_of(changed(heads + u32(4), heads + u32(0))).message,
              HasSubstr("head_count is 0"));
  EXPECT_THAT(error_of(changed(heads + u32(4), heads + u32(3))).message,
              HasSubstr("no multiple of 2 KV heads"));
  const std::string ffn = "llama.feed_forward_length" + u32(4);
  EXPECT_THAT(error_of(changed(ffn + u32(256), ffn + u32(128))).message,
              HasSubstr("tensor blk.0.ffn_gate.weight is 256 x 64; the configuration asks for "
                        "128 x 64"));
}

TEST(Load, NamesRopeScalingThatItLacks) {
  const auto text = [](const std::string& value) {
    const std::uint64_t size = value.size();
    return std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + value;
  };
  // One metadata pair makes way for another; the tensor data moves by whole alignments.
  const std::string old_pair = text("general.name") + u32(8) + text("tiny-f32");
  std::string kind = "longrope";
  while ((text("llama.rope.scaling.type").size() + text(kind).size() + 4 - old_pair.size()) % 32)
    kind += '!';
  std::string bytes = read_bytes(tiny_model_path("f32"));
  const std::size_t at = bytes.find(old_pair);
  ASSERT_NE(at, std::string::npos);
  bytes.replace(at, old_pair.size(), text("llama.rope.scaling.type") + u32(8) + text(kind));
  const Error error = error_of(bytes);
  EXPECT_EQ(error.code, Errc::kUnsupported);
  EXPECT_THAT(error.message, HasSubstr("RoPE scaling 'longrope"));
  EXPECT_THAT(error.message, HasSubstr("supported are none, linear, yarn and"));
}

TEST(Load, BothModesDescribeTheSameModel) {
  const ModelSource source = gguf_source(tiny_model_path("mixed"));
  ThreadPool threads(2);
  const auto native = build_image(source, {ops::ComputeMode::kNative}, threads).value();
  const auto exact = build_image(source, {ops::ComputeMode::kExact32}, threads).value();
  EXPECT_EQ(native.config.to_json(), exact.config.to_json());
  EXPECT_NE(native.digest, exact.digest) << "another packing computes other bits";
  EXPECT_LT(native.size_bytes, exact.size_bytes);
  EXPECT_EQ(native.config.eos_token_ids, (std::vector<TokenId>{0, 2}));
  EXPECT_TRUE(native.config.tied_embeddings);
  EXPECT_EQ(native.config.max_positions, 8192);

  const auto again = build_image(source, {ops::ComputeMode::kNative}, threads).value();
  EXPECT_EQ(again.digest, native.digest);
  const auto one = map_fd(native.fd.get(), native.size_bytes, MapAccess::kReadOnly).value();
  const auto two = map_fd(again.fd.get(), again.size_bytes, MapAccess::kReadOnly).value();
  EXPECT_TRUE(std::ranges::equal(one.bytes(), two.bytes())) << "packing is not deterministic";
}

TEST(Load, ConfigurationSurvivesJson) {
  ModelConfig config;
  config.family = "llama";
  config.num_layers = 2;
  config.layers = {{512, true}, {0, false}};
  config.rms_norm_eps = 1e-5F;
  config.rope.theta = 100000.0;
  config.rope.scaling = RopeScaling::kYarn;
  config.eos_token_ids = {0, 2};
  const ModelConfig back = ModelConfig::from_json(config.to_json()).value();
  EXPECT_EQ(back.to_json(), config.to_json());
  EXPECT_EQ(back.rms_norm_eps, config.rms_norm_eps);
  EXPECT_FALSE(ModelConfig::from_json("{}"));
  EXPECT_FALSE(ModelConfig::from_json("not json"));
}

TEST(MakeModel, RefusesWhatCannotWork) {
  Harness harness(tiny_model_path("q4_1"), {});
  std::vector<std::byte> memory(1 << 20);
  const auto error = [&](std::size_t bytes, int max_positions) {
    const auto made = make_model(harness.device(), harness.image(), std::span(memory).first(bytes),
                                 {ops::KvDType::kBF16, max_positions});
    EXPECT_FALSE(made);
    return made ? std::string() : made.error().message;
  };
  // 3 layers x K and V x 2 heads x 16 tokens x 16 dimensions x 2 bytes.
  EXPECT_EQ(kv_block_bytes(harness.config(), ops::KvDType::kBF16), 6144u);
  EXPECT_EQ(kv_block_bytes(harness.config(), ops::KvDType::kF32), 12288u);
  EXPECT_THAT(error(6143, 0), HasSubstr("6143 bytes holds no block of 6144"));
  EXPECT_THAT(error(6144, 8193), HasSubstr("max_positions is 8193"));
  EXPECT_THAT(error(6144, -1), HasSubstr("max_positions is -1"));
}

TEST(MakeModel, FingerprintNamesWhatDecidesTheBits) {
  Harness native(tiny_model_path("q4_1"), {});
  Harness exact(tiny_model_path("q4_1"), {.mode = ops::ComputeMode::kExact32});
  Harness generic(tiny_model_path("q4_1"), {.threads = 2, .isa = "generic"});
  const auto of = [](Harness& harness, ops::KvDType dtype) {
    return engine_fingerprint(harness.image(), dtype, harness.device());
  };
  EXPECT_EQ(of(native, ops::KvDType::kBF16), of(generic, ops::KvDType::kBF16));
  EXPECT_NE(of(native, ops::KvDType::kBF16), of(native, ops::KvDType::kF16));
  EXPECT_NE(of(native, ops::KvDType::kBF16), of(exact, ops::KvDType::kBF16));
}

}  // namespace
}  // namespace thaw::model
