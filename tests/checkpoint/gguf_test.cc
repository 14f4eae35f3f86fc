#include "engine/checkpoint/gguf.h"

#include <algorithm>
#include <map>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/checkpoint/end_tokens.h"
#include "tests/checkpoint/gguf_builder.h"

namespace thaw::checkpoint {
namespace {

using testing::HasSubstr;

std::string tiny_path(const std::string& name) {
  return std::string(THAW_BINARY_DIR) + "/testdata/tiny-" + name + ".gguf";
}

std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

/// The error that opening `bytes` gives; its message names the path and is one line.
Error gguf_error(std::string_view bytes) {
  const ScratchFile file(bytes);
  const auto opened = GgufFile::open(file.path());
  if (opened) {
    ADD_FAILURE() << "it opened";
    return {};
  }
  EXPECT_THAT(opened.error().message, HasSubstr(file.path()));
  EXPECT_EQ(opened.error().message.find('\n'), std::string::npos);
  return opened.error();
}

TEST(Gguf, MetadataStandsAlone) {
  const GgufFile file = GgufFile::open(tiny_path("mixed")).value();
  const auto bytes = file.metadata_bytes();
  auto alone = GgufFile::open_metadata("alone", {bytes.begin(), bytes.end()});
  ASSERT_TRUE(alone);
  const GgufFile moved = *std::move(alone);
  EXPECT_TRUE(moved.tensors().empty());
  EXPECT_EQ(moved.get_string("general.architecture"), "llama");
  EXPECT_EQ(*moved.get_strings("tokenizer.ggml.tokens"),
            *file.get_strings("tokenizer.ggml.tokens"));
  EXPECT_EQ(end_tokens(moved), end_tokens(file));
  EXPECT_TRUE(std::ranges::equal(moved.metadata_bytes(), bytes));
  const auto cut = GgufFile::open_metadata("alone", {bytes.begin(), bytes.end() - 1});
  EXPECT_THAT(cut.error().message, HasSubstr("alone: truncated"));
}

TEST(Gguf, ReadsMetadataAndTensors) {
  const GgufFile file = GgufFile::open(tiny_path("mixed")).value();
  EXPECT_EQ(file.get_string("general.architecture"), "llama");
  EXPECT_EQ(file.get_int("llama.block_count"), 3);
  EXPECT_NEAR(file.get_float("llama.attention.layer_norm_rms_epsilon").value(), 1e-5, 1e-9);
  EXPECT_EQ(file.get_bool("tokenizer.ggml.add_bos_token"), false);
  ASSERT_NE(file.get_strings("tokenizer.ggml.tokens"), nullptr);
  EXPECT_EQ(file.get_strings("tokenizer.ggml.tokens")->at(1), "<|im_start|>");
  ASSERT_NE(file.get_ints("tokenizer.ggml.token_type"), nullptr);
  EXPECT_EQ(file.get_ints("tokenizer.ggml.token_type")->size(), 520u);

  EXPECT_EQ(file.get_int("general.architecture"), std::nullopt) << "of another type";
  EXPECT_EQ(file.get_string("no.such.key"), std::nullopt);
  EXPECT_EQ(file.get_floats("tokenizer.ggml.tokens"), nullptr);
  EXPECT_FALSE(file.has("no.such.key"));

  const StoredTensor* down = file.find_tensor("blk.1.ffn_down.weight");
  ASSERT_NE(down, nullptr);
  EXPECT_EQ(down->dtype, DType::kQ6_K);
  EXPECT_EQ(down->rows(), 64);
  EXPECT_EQ(down->cols(), 256);
  EXPECT_EQ(down->data.size(), 64u * 210);
  EXPECT_EQ(file.find_tensor("blk.9.ffn_down.weight"), nullptr);
}

TEST(Gguf, ReadsEveryKindOfValue) {
  GgufBuilder builder;
  builder.header(0, 14);
  builder.text("u8").put<std::uint32_t>(0).put<std::uint8_t>(200);
  builder.text("i8").put<std::uint32_t>(1).put<std::int8_t>(-2);
  builder.text("u16").put<std::uint32_t>(2).put<std::uint16_t>(60000);
  builder.text("i16").put<std::uint32_t>(3).put<std::int16_t>(-3);
  builder.text("u32").put<std::uint32_t>(4).put<std::uint32_t>(4000000000u);
  builder.text("i32").put<std::uint32_t>(5).put<std::int32_t>(-4);
  builder.text("f32").put<std::uint32_t>(6).put(0.5F);
  builder.text("bool").put<std::uint32_t>(7).put<std::uint8_t>(1);
  builder.text("u64").put<std::uint32_t>(10).put<std::uint64_t>(1ULL << 40);
  builder.text("huge").put<std::uint32_t>(10).put<std::uint64_t>(1ULL << 63);
  builder.text("i64").put<std::uint32_t>(11).put<std::int64_t>(-5);
  builder.text("f64").put<std::uint32_t>(12).put(0.25);
  builder.text("bools").put<std::uint32_t>(9).put<std::uint32_t>(7).put<std::uint64_t>(2);
  builder.put<std::uint8_t>(1).put<std::uint8_t>(0);
  builder.text("reals").put<std::uint32_t>(9).put<std::uint32_t>(6).put<std::uint64_t>(1);
  builder.put(1.5F);
  const ScratchFile scratch(builder.bytes());
  const GgufFile file = GgufFile::open(scratch.path()).value();
  EXPECT_EQ(file.get_int("u8"), 200);
  EXPECT_EQ(file.get_int("i8"), -2);
  EXPECT_EQ(file.get_int("u16"), 60000);
  EXPECT_EQ(file.get_int("i16"), -3);
  EXPECT_EQ(file.get_int("u32"), 4000000000);
  EXPECT_EQ(file.get_int("i32"), -4);
  EXPECT_EQ(file.get_float("f32"), 0.5);
  EXPECT_EQ(file.get_bool("bool"), true);
  EXPECT_EQ(file.get_int("u64"), std::int64_t{1} << 40);
  EXPECT_EQ(file.get_int("huge"), std::nullopt);
  EXPECT_EQ(file.get_int("i64"), -5);
  EXPECT_EQ(file.get_float("f64"), 0.25);
  EXPECT_EQ(file.get_floats("reals")->at(0), 1.5);
}

TEST(Gguf, NamesWhatIsWrong) {
  EXPECT_EQ(GgufFile::open("/nowhere/model.gguf").error().code, Errc::kIo);
  EXPECT_THAT(gguf_error("").message, HasSubstr("truncated"));
  EXPECT_THAT(gguf_error("PK\x03\x04 not a model at all").message, HasSubstr("not a GGUF file"));
  EXPECT_THAT(gguf_error(GgufBuilder().header(0, 0, 1).bytes()).message, HasSubstr("version 1"));
  EXPECT_THAT(gguf_error(GgufBuilder().header(0, 0, 0x03000000).bytes()).message,
              HasSubstr("big-endian"));
  EXPECT_THAT(gguf_error(GgufBuilder().header(1u << 30, 0).bytes()).message,
              HasSubstr("truncated"));
  EXPECT_THAT(gguf_error(GgufBuilder().header(0, 1u << 30).bytes()).message,
              HasSubstr("truncated"));
  EXPECT_THAT(
      gguf_error(GgufBuilder().header(0, 1).text("k").put<std::uint32_t>(13).bytes()).message,
      HasSubstr("type 13"));
  EXPECT_THAT(gguf_error(GgufBuilder()
                             .header(0, 1)
                             .text("k")
                             .put<std::uint32_t>(9)
                             .put<std::uint32_t>(9)
                             .put<std::uint64_t>(0)
                             .bytes())
                  .message,
              HasSubstr("array"));
  EXPECT_THAT(gguf_error(GgufBuilder()
                             .header(0, 1)
                             .text("k")
                             .put<std::uint32_t>(9)
                             .put<std::uint32_t>(8)
                             .put<std::uint64_t>(~0ULL)
                             .bytes())
                  .message,
              HasSubstr("18446744073709551615 elements"));
}

TEST(Gguf, NamesWhatIsWrongWithATensor) {
  const auto with_tensor = [](const std::vector<std::uint64_t>& shape, std::uint32_t type,
                              std::uint64_t offset) {
    return gguf_error(
               GgufBuilder().header(1, 0).tensor("w", shape, type, offset).data(1024).bytes())
        .message;
  };
  EXPECT_THAT(with_tensor({32}, 16, 0), HasSubstr("has type IQ2_XXS;"));
  const std::map<std::uint32_t, std::string> known{
      {9, "Q8_1"}, {15, "Q8_K"}, {21, "IQ3_S"}, {34, "TQ1_0"}, {39, "MXFP4"}};
  for (const auto& [type, name] : known)
    EXPECT_THAT(with_tensor({256}, type, 0), HasSubstr("has type " + name + ";"));
  EXPECT_THAT(
      with_tensor({32}, 16, 0),
      HasSubstr("supported are F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, "
                "Q6_K, IQ4_NL, BF16"));
  EXPECT_THAT(with_tensor({32}, 777, 0), HasSubstr("type 777"));
  EXPECT_THAT(with_tensor({128}, 11, 0), HasSubstr("Q3_K needs a multiple of 256"));
  EXPECT_THAT(with_tensor({33}, 3, 0), HasSubstr("multiple of 32"));
  EXPECT_THAT(with_tensor({0}, 0, 0), HasSubstr("impossible shape"));
  EXPECT_THAT(with_tensor({1ULL << 40, 1ULL << 40}, 0, 0), HasSubstr("impossible shape"));
  EXPECT_THAT(with_tensor({1ULL << 62}, 0, 0), HasSubstr("impossible shape"));
  EXPECT_THAT(with_tensor({1, 1, 1, 1, 1}, 0, 0), HasSubstr("5 dimensions"));
  EXPECT_THAT(with_tensor({512}, 0, 0), HasSubstr("truncated"));
  EXPECT_THAT(with_tensor({8}, 0, ~0ULL), HasSubstr("truncated"));
  EXPECT_THAT(gguf_error(GgufBuilder()
                             .header(2, 0)
                             .tensor("w", {8}, 0, 0)
                             .tensor("w", {8}, 0, 32)
                             .data(64)
                             .bytes())
                  .message,
              HasSubstr("occurs twice"));
}

TEST(Gguf, EveryTruncationIsAnError) {
  const std::string bytes = read_bytes(tiny_path("mixed"));
  std::mt19937 random(5);
  for (int i = 0; i < 300; ++i) {
    const std::size_t size = random() % bytes.size();
    gguf_error(std::string_view(bytes).substr(0, size));
  }
}

// Whatever a byte says, the parser ends with a file or an error; the sanitizer build makes this
// sharper. Every tensor of a file that opens is read to its end.
TEST(Gguf, DamagedBytesNeverCrash) {
  const std::string original = read_bytes(tiny_path("mixed"));
  const std::size_t header_bytes = 16384;
  for (unsigned seed = 0; seed < 1500; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    std::mt19937 random(seed);
    std::string bytes = original.substr(0, header_bytes + random() % 4096);
    if (seed % 3 == 0) bytes = original;
    const int changes = 1 + static_cast<int>(random() % 8);
    for (int i = 0; i < changes; ++i) {
      // Counts, lengths and types lie among the first and the last bytes of the header.
      const std::size_t at = random() % (i % 2 == 0 ? 1200 : header_bytes);
      bytes[at] = static_cast<char>(random() % 4 == 0 ? 0xff : random());
    }
    const ScratchFile scratch(bytes);
    const auto file = GgufFile::open(scratch.path());
    if (!file) continue;
    std::size_t sum = 0;
    for (const StoredTensor& tensor : file->tensors())
      for (const std::byte byte : tensor.data)
        sum += static_cast<std::size_t>(byte);
    EXPECT_GE(sum, 0u);
    end_tokens(*file);
  }
}

TEST(Gguf, DigestNamesTheContent) {
  const std::string bytes = read_bytes(tiny_path("q4_1"));
  const Hash128 original = GgufFile::open(tiny_path("q4_1")).value().digest();
  for (const std::size_t at : {bytes.size() / 2, bytes.size() - 1}) {
    std::string changed = bytes;
    changed[at] = static_cast<char>(changed[at] ^ 1);
    const ScratchFile scratch(changed);
    EXPECT_NE(GgufFile::open(scratch.path()).value().digest(), original) << at;
  }
  const ScratchFile copy(bytes);
  EXPECT_EQ(GgufFile::open(copy.path()).value().digest(), original);
}

TEST(EndTokens, HoldsTheFilesOwnAndTheWellKnown) {
  const GgufFile file = GgufFile::open(tiny_path("q4_1")).value();
  EXPECT_EQ(end_tokens(file), (std::vector<TokenId>{0, 2}));
}

}  // namespace
}  // namespace thaw::checkpoint
