#include "engine/checkpoint/safetensors.h"

#include <cstring>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/checkpoint/safetensors_builder.h"
#include "tests/checkpoint/scratch_folder.h"

namespace thaw::checkpoint {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string_view text_of(std::span<const std::byte> data) {
  return {reinterpret_cast<const char*>(data.data()), data.size()};
}

/// The error that opening a file of `bytes` gives; its message names the path and is one line.
std::string safetensors_error(std::string_view bytes) {
  const ScratchFolder folder;
  const std::string path = folder.write("model.safetensors", bytes);
  const auto opened = SafetensorsFiles::open(folder.path());
  if (opened) {
    ADD_FAILURE() << "it opened";
    return "";
  }
  EXPECT_THAT(opened.error().message, HasSubstr(path));
  EXPECT_EQ(opened.error().message.find('\n'), std::string::npos);
  return opened.error().message;
}

/// The same for a header, as it stands, and `data_bytes` of data.
std::string safetensors_error(std::string_view header, std::size_t data_bytes) {
  return safetensors_error(safetensors_bytes(header, std::string(data_bytes, 'x')));
}

TEST(Safetensors, ReadsTensorsWhereTheyLie) {
  const ScratchFolder folder;
  const std::string bytes = SafetensorsBuilder()
                                .tensor("a", "F32", "[2,3]", "aaaaaaaaaaaaaaaaaaaaaaaa")
                                .tensor("b", "BF16", "[4]", "bbbbbbbb")
                                .tensor("c", "F16", "[]", "cc")
                                .bytes();
  const std::string path = folder.write("model.safetensors", bytes);
  const auto files = SafetensorsFiles::open(folder.path()).value();
  EXPECT_EQ(files.path(), folder.path());
  ASSERT_EQ(files.tensors().size(), 3u);
  const StoredTensor* a = files.find_tensor("a");
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(a->name, "a");
  EXPECT_EQ(a->dtype, DType::kF32);
  EXPECT_THAT(a->shape, ElementsAre(3, 2)) << "the contiguous dimension comes first";
  EXPECT_EQ(a->rows(), 2);
  EXPECT_EQ(a->cols(), 3);
  EXPECT_EQ(text_of(a->data), "aaaaaaaaaaaaaaaaaaaaaaaa");
  EXPECT_EQ(text_of(files.find_tensor("b")->data), "bbbbbbbb");
  EXPECT_EQ(files.find_tensor("b")->dtype, DType::kBF16);
  EXPECT_EQ(files.find_tensor("c")->rows() * files.find_tensor("c")->cols(), 1);
  EXPECT_EQ(files.find_tensor("d"), nullptr);
  EXPECT_EQ(SafetensorsFiles::open_file(path)->tensors().size(), 3u);
}

TEST(Safetensors, AcceptsWhatWritersDo) {
  const ScratchFolder folder;
  // Metadata, spaces behind the header, tensors listed in another order than they lie.
  folder.write("model.safetensors",
               safetensors_bytes(R"({"__metadata__":{"format":"pt"},)"
                                 R"("b":{"data_offsets":[4,8],"shape":[1],"dtype":"F32"},)"
                                 R"("a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}    )",
                                 "aaaabbbb"));
  const auto files = SafetensorsFiles::open(folder.path()).value();
  EXPECT_EQ(text_of(files.find_tensor("b")->data), "bbbb");
  EXPECT_EQ(text_of(files.find_tensor("a")->data), "aaaa");
}

TEST(Safetensors, NamesWhatIsWrongWithAFile) {
  EXPECT_THAT(safetensors_error(""), HasSubstr("too short"));
  EXPECT_THAT(safetensors_error("\x10"), HasSubstr("too short"));
  EXPECT_THAT(safetensors_error(std::string(16, '\xff')),
              HasSubstr("header of 18446744073709551615"));
  EXPECT_THAT(safetensors_error(std::string_view("\x10\0\0\0\0\0\0\0{}", 10)),
              HasSubstr("2 follow"));
  EXPECT_THAT(safetensors_error("", 0), HasSubstr("not the JSON object"));
  EXPECT_THAT(safetensors_error("[]", 0), HasSubstr("not the JSON object"));
  EXPECT_THAT(safetensors_error(std::string(100000, '['), 0), HasSubstr("not the JSON object"));
  EXPECT_THAT(safetensors_error("{}", 1), HasSubstr("1 follow the header"));
  EXPECT_THAT(safetensors_error(R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}} {})", 4),
              HasSubstr("not the JSON object"));
  const ScratchFolder empty;
  const auto missing = SafetensorsFiles::open(empty.path());
  ASSERT_FALSE(missing);
  EXPECT_THAT(missing.error().message, HasSubstr("model.safetensors"));
}

TEST(Safetensors, NamesWhatIsWrongWithATensor) {
  const auto with = [](const std::string& fields, std::size_t data_bytes = 4) {
    const std::string message =
        safetensors_error(R"({"some.weight":{)" + fields + "}}", data_bytes);
    EXPECT_THAT(message, HasSubstr("'some.weight'"));
    return message;
  };
  const auto sized = [&](const std::string& dtype, const std::string& shape,
                         const std::string& offsets, std::size_t data_bytes = 4) {
    return with(R"("dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets,
                data_bytes);
  };
  EXPECT_THAT(sized("F64", "[1]", "[0,8]", 8), HasSubstr("'F64'; supported are F32, F16, BF16"));
  EXPECT_THAT(sized("F8_E4M3", "[4]", "[0,4]"), HasSubstr("'F8_E4M3'"));
  EXPECT_THAT(sized("F99", "[1]", "[0,4]"), HasSubstr("'F99'"));
  EXPECT_THAT(sized("F32", "[2]", "[0,4]"), HasSubstr("has 4 bytes; its shape and type F32"));
  EXPECT_THAT(sized("F16", "[1]", "[0,4]"), HasSubstr("ask for 2"));
  EXPECT_THAT(sized("F32", "[0]", "[0,0]", 0), HasSubstr("impossible shape"));
  EXPECT_THAT(sized("F32", "[-1]", "[0,4]"), HasSubstr("impossible shape"));
  EXPECT_THAT(sized("F32", "[1.0]", "[0,4]"), HasSubstr("impossible shape"));
  EXPECT_THAT(sized("F32", "[4294967296,4294967296]", "[0,4]"), HasSubstr("impossible shape"));
  EXPECT_THAT(sized("F32", "[9223372036854775807]", "[0,4]"), HasSubstr("impossible shape"));
  EXPECT_THAT(sized("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]"), HasSubstr("8 dimensions"));
  EXPECT_THAT(sized("F32", "1", "[0,4]"), HasSubstr("no list"));
  EXPECT_THAT(sized("F32", "[1]", "[4,0]"), HasSubstr("bytes 4 to 0"));
  EXPECT_THAT(sized("F32", "[1]", "[0,8]"), HasSubstr("which has 4"));
  EXPECT_THAT(sized("F32", "[1]", "[18446744073709551612,18446744073709551615]"),
              HasSubstr("which has 4"));
  EXPECT_THAT(sized("F32", "[1]", "[-4,0]"), HasSubstr("no pair"));
  EXPECT_THAT(sized("F32", "[1]", "[0,4,8]"), HasSubstr("no pair"));
  EXPECT_THAT(with(R"("dtype":"F32","shape":[1])"), HasSubstr("no data_offsets"));
  EXPECT_THAT(with(R"("dtype":"F32","dtype":"F16","shape":[1],"data_offsets":[0,4])"),
              HasSubstr("dtype twice"));
  EXPECT_THAT(with(R"("dtype":7,"shape":[1],"data_offsets":[0,4])"), HasSubstr("no string"));
  EXPECT_THAT(safetensors_error(R"({"w":3})", 0), HasSubstr("no object"));
}

TEST(Safetensors, TensorsNeitherOverlapNorLeaveHoles) {
  const auto two = [](const std::string& first, const std::string& second, std::size_t bytes) {
    return safetensors_error(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":)" + first +
                                 R"(},"b":{"dtype":"F32","shape":[2],"data_offsets":)" + second +
                                 "}}",
                             bytes);
  };
  EXPECT_THAT(two("[0,8]", "[4,12]", 12), HasSubstr("'b' overlaps"));
  EXPECT_THAT(two("[0,8]", "[0,8]", 8), HasSubstr("overlaps"));
  EXPECT_THAT(two("[0,8]", "[12,20]", 20), HasSubstr("'b' leaves a hole"));
  EXPECT_THAT(two("[4,12]", "[12,20]", 20), HasSubstr("'a' leaves a hole"));
  EXPECT_THAT(two("[0,8]", "[8,16]", 20), HasSubstr("take 16 bytes, but 20 follow"));
  EXPECT_THAT(safetensors_error(R"({"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                                R"("w":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
                                8),
              HasSubstr("'w' occurs twice"));
}

TEST(Safetensors, ListsUnsupportedTensorsWhereAsked) {
  const ScratchFolder folder;
  folder.write("model.safetensors", SafetensorsBuilder()
                                        .tensor("ids", "I64", "[1]", "12345678")
                                        .tensor("w", "F32", "[1]", "1234")
                                        .bytes());
  std::vector<UnsupportedTensor> unsupported;
  const auto files = SafetensorsFiles::open(folder.path(), &unsupported).value();
  EXPECT_NE(files.find_tensor("w"), nullptr);
  EXPECT_EQ(files.find_tensor("ids"), nullptr);
  ASSERT_EQ(unsupported.size(), 1u);
  EXPECT_EQ(unsupported[0].name, "ids");
  EXPECT_EQ(unsupported[0].dtype, "I64");
}

// Any byte of a small file set to any of a few values: a file or an error, never a crash, and every
// tensor of a file that opens can be read to its end.
TEST(Safetensors, DamagedBytesNeverCrash) {
  const std::string original = SafetensorsBuilder()
                                   .tensor("a", "F32", "[2,2]", std::string(16, 'a'))
                                   .tensor("b", "BF16", "[3]", std::string(6, 'b'))
                                   .bytes();
  const ScratchFolder folder;
  std::size_t opened = 0;
  for (std::size_t at = 0; at < original.size(); ++at) {
    for (const char value : {'\0', '\xff', '9', '{', '"', '[', '-', static_cast<char>(at * 37)}) {
      std::string bytes = original;
      bytes[at] = value;
      const auto files = SafetensorsFiles::open_file(folder.write("m", bytes));
      if (!files) continue;
      ++opened;
      std::size_t sum = 0;
      for (const StoredTensor& tensor : files->tensors())
        for (const std::byte byte : tensor.data)
          sum += static_cast<std::size_t>(byte);
      EXPECT_GE(sum, 0u);
    }
  }
  EXPECT_GT(opened, 100u) << "changed data, and names, still make a file";
  for (std::size_t size = 0; size < original.size(); ++size)
    safetensors_error(std::string_view(original).substr(0, size));
}

class Sharded : public testing::Test {
 protected:
  Sharded() {
    folder_.write("model-1.safetensors",
                  SafetensorsBuilder().tensor("a", "F32", "[1]", "aaaa").bytes());
    folder_.write("model-2.safetensors",
                  SafetensorsBuilder().tensor("b", "F32", "[1]", "bbbb").bytes());
    index(R"({"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}})");
  }
  void index(std::string_view text) { folder_.write("model.safetensors.index.json", text); }
  std::string error() {
    const auto opened = SafetensorsFiles::open(folder_.path());
    EXPECT_FALSE(opened);
    return opened ? "" : opened.error().message;
  }

  ScratchFolder folder_;
};

TEST_F(Sharded, AllShardsAreOneSource) {
  const auto files = SafetensorsFiles::open(folder_.path()).value();
  EXPECT_EQ(files.tensors().size(), 2u);
  EXPECT_EQ(text_of(files.find_tensor("a")->data), "aaaa");
  EXPECT_EQ(text_of(files.find_tensor("b")->data), "bbbb");
}

TEST_F(Sharded, NamesTheMissingShard) {
  std::filesystem::remove(folder_ / "model-2.safetensors");
  EXPECT_THAT(error(), HasSubstr(folder_ / "model-2.safetensors is missing"));
  std::filesystem::create_symlink("../blobs/gone", folder_ / "model-2.safetensors");
  EXPECT_THAT(error(), HasSubstr(folder_ / "model-2.safetensors is missing"));
}

TEST_F(Sharded, NamesWhatIsWrongWithTheIndex) {
  index("[]");
  EXPECT_THAT(error(), HasSubstr("weight_map"));
  index("{");
  EXPECT_THAT(error(), HasSubstr("model.safetensors.index.json"));
  index(R"({"weight_map":{}})");
  EXPECT_THAT(error(), HasSubstr("names no tensor"));
  index(R"({"weight_map":{"a":1}})");
  EXPECT_THAT(error(), HasSubstr("no string"));
  index(R"({"weight_map":{"a":"model-1.safetensors","a":"model-2.safetensors"}})");
  EXPECT_THAT(error(), HasSubstr("'a' occurs twice"));
  for (const char* file : {"../model-1.safetensors", "/etc/passwd", "..", "", "x\\u0000y"}) {
    index(std::string(R"({"weight_map":{"a":")") + file + R"("}})");
    EXPECT_THAT(error(), HasSubstr("beside the index")) << file;
  }
  index(R"({"weight_map":{"a":"model-2.safetensors","b":"model-2.safetensors"}})");
  EXPECT_THAT(error(), HasSubstr("'a' is missing"));
}

TEST_F(Sharded, ATensorInTwoShardsIsAnError) {
  folder_.write("model-2.safetensors", SafetensorsBuilder()
                                           .tensor("b", "F32", "[1]", "bbbb")
                                           .tensor("a", "F32", "[1]", "aaaa")
                                           .bytes());
  EXPECT_THAT(error(), HasSubstr("'a' is in another"));
}

TEST_F(Sharded, DigestNamesTheContentOfAllFiles) {
  const auto digest = [this] { return SafetensorsFiles::open(folder_.path())->digest(); };
  const Hash128 original = digest();
  EXPECT_EQ(digest(), original);
  folder_.write("config.json", "{}");
  const Hash128 with_config = digest();
  EXPECT_NE(with_config, original);
  folder_.write("model-2.safetensors",
                SafetensorsBuilder().tensor("b", "F32", "[1]", "bbbB").bytes());
  EXPECT_NE(digest(), with_config);
}

}  // namespace
}  // namespace thaw::checkpoint
