#include "engine/checkpoint/gguf_split.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/checkpoint/gguf.h"
#include "tests/checkpoint/gguf_builder.h"
#include "tests/checkpoint/scratch_folder.h"

namespace thaw::checkpoint {
namespace {

using testing::HasSubstr;

constexpr std::uint32_t kU16 = 2;
constexpr std::uint32_t kI32 = 5;

/// A part that says it is number `part` (from 0) of `count`, with one tensor.
std::string part_bytes(std::uint16_t part, std::uint16_t count, std::string_view tensor,
                       std::int32_t tensors_in_all = 2) {
  GgufBuilder builder;
  builder.header(1, 4);
  builder.text("split.no").put(kU16).put(part);
  builder.text("split.count").put(kU16).put(count);
  builder.text("split.tensors.count").put(kI32).put(tensors_in_all);
  builder.text("number").put(kU16).put(part);
  return builder.tensor(tensor, {8}, 0, 0).data(32).bytes();
}

TEST(SplitName, ReadsAndWritesNames) {
  const auto name = parse_split_name("dir/model-00002-of-00013.gguf");
  ASSERT_TRUE(name);
  EXPECT_EQ(name->stem, "dir/model");
  EXPECT_EQ(name->part, 2u);
  EXPECT_EQ(name->count, 13u);
  EXPECT_EQ(name->part_path(13), "dir/model-00013-of-00013.gguf");
  for (const char* other :
       {"", "model.gguf", "model-00003-of-00002.gguf", "model-00000-of-00002.gguf",
        "model-0001-of-0002.gguf", "model_00001-of-00002.gguf", "model-00001-of-00002.bin",
        "model-0000a-of-00002.gguf", "-00001-of-00002.gguf"}) {
    EXPECT_FALSE(parse_split_name(other)) << other;
  }
}

class SplitGguf : public testing::Test {
 protected:
  SplitGguf() {
    write(1, part_bytes(0, 2, "a"));
    write(2, part_bytes(1, 2, "b"));
  }
  void write(int number, std::string_view bytes) { folder_.write(name(number), bytes); }
  static std::string name(int number) {
    return "m-0000" + std::to_string(number) + "-of-00002.gguf";
  }
  std::string error() {
    const auto opened = GgufFile::open(folder_ / name(1));
    EXPECT_FALSE(opened);
    return opened ? "" : opened.error().message;
  }

  ScratchFolder folder_;
};

TEST_F(SplitGguf, AnyPartOpensAll) {
  for (const int number : {1, 2}) {
    const auto file = GgufFile::open(folder_ / name(number)).value();
    EXPECT_EQ(file.tensors().size(), 2u);
    ASSERT_NE(file.find_tensor("a"), nullptr);
    ASSERT_NE(file.find_tensor("b"), nullptr);
    EXPECT_EQ(file.find_tensor("b")->data.size(), 32u);
    EXPECT_EQ(static_cast<int>(file.find_tensor("b")->data[31]), 1);
    EXPECT_EQ(file.get_int("number"), 0) << "metadata is that of the first part";
    EXPECT_EQ(file.path(), folder_ / name(1));
  }
}

TEST_F(SplitGguf, DigestNamesAllParts) {
  const Hash128 original = GgufFile::open(folder_ / name(1))->digest();
  EXPECT_EQ(GgufFile::open(folder_ / name(2))->digest(), original);
  std::string changed = part_bytes(1, 2, "b");
  changed.back() = '\x02';
  write(2, changed);
  EXPECT_NE(GgufFile::open(folder_ / name(1))->digest(), original);
}

TEST_F(SplitGguf, NamesWhatIsWrong) {
  write(2, part_bytes(0, 2, "b"));
  EXPECT_THAT(error(), HasSubstr(folder_ / name(2) + ": it says that it is part 1 of 2"));
  write(2, part_bytes(1, 3, "b"));
  EXPECT_THAT(error(), HasSubstr("part 2 of 3"));
  write(2, part_bytes(1, 2, "a"));
  EXPECT_THAT(error(), HasSubstr("tensor 'a' is in another part"));
  write(2, "GGUF");
  EXPECT_THAT(error(), HasSubstr(folder_ / name(2) + ": truncated"));
  write(2, part_bytes(1, 2, "b"));
  write(1, part_bytes(0, 2, "a", 3));
  EXPECT_THAT(error(), HasSubstr("split.tensors.count is 3, but the parts hold 2"));
  write(1, part_bytes(0, 65535, "a"));
  EXPECT_THAT(error(), HasSubstr("one of 65535 parts"));
  write(1, part_bytes(0, 2, "a"));
  std::filesystem::remove(folder_ / name(2));
  EXPECT_THAT(error(), HasSubstr(folder_ / name(2) + " is missing"));

  const std::string misnamed = folder_.write("m.gguf", part_bytes(0, 2, "a"));
  EXPECT_THAT(GgufFile::open(misnamed).error().message, HasSubstr("-0000N-of-0000M.gguf"));
}

TEST_F(SplitGguf, AFileThatOnlyLooksLikeAPartIsWhole) {
  write(1, GgufBuilder().header(1, 0).tensor("w", {8}, 0, 0).data(32).bytes());
  EXPECT_EQ(GgufFile::open(folder_ / name(1))->tensors().size(), 1u);
}

TEST(Gguf, ListsUnsupportedTensorsWhereAsked) {
  const ScratchFile scratch(GgufBuilder()
                                .header(3, 0)
                                .tensor("odd", {32}, 39, 0)
                                .tensor("newer", {32}, 777, 0)
                                .tensor("w", {8}, 0, 0)
                                .data(32)
                                .bytes());
  std::vector<UnsupportedTensor> unsupported;
  const auto file = GgufFile::open(scratch.path(), &unsupported).value();
  EXPECT_NE(file.find_tensor("w"), nullptr);
  EXPECT_EQ(file.find_tensor("odd"), nullptr);
  ASSERT_EQ(unsupported.size(), 2u);
  EXPECT_EQ(unsupported[0].name, "odd");
  EXPECT_EQ(unsupported[0].dtype, "MXFP4");
  EXPECT_EQ(unsupported[1].dtype, "777");
}

}  // namespace
}  // namespace thaw::checkpoint
