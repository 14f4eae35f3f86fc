// What is frozen comes back byte for byte, whole or in shards, and computes the same bits; what is
// damaged or does not belong together is refused.

#include "cli/weights_file.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "cli/freeze_weights.h"
#include "cli/public_weights.h"
#include "cli/region_layout.h"
#include "engine/base/crc32c.h"
#include "engine/model/tensor_list.h"
#include "kvsnap/container_writer.h"
#include "kvsnap/shard_path.h"
#include "tests/checkpoint/scratch_folder.h"
#include "tests/model/model_harness.h"

namespace thaw::cli {
namespace {

using checkpoint::ScratchFolder;
using nlohmann::ordered_json;
using testing::HasSubstr;

kvsnap::FileIo& files() {
  return kvsnap::system_io(kvsnap::IoMode::kBuffered);
}

WeightsDocument describe(const model::ModelSource& source) {
  WeightsDocument document;
  document.writer = "test";
  document.model = "tiny";
  document.config_json = source.config.to_json();
  document.dtype = "F32";
  document.container = source.naming == model::TensorNaming::kGguf ? "GGUF" : "safetensors";
  document.tokenizer_hash = "none";
  return document;
}

Result<FrozenWeights> freeze(const model::ModelSource& source, const std::string& path,
                             std::uint32_t num_ranks = 1) {
  WeightsDocument document = describe(source);
  document.num_ranks = num_ranks;
  return freeze_weights(files(), source, document, path);
}

std::shared_ptr<const WeightsFile> open(const std::string& path) {
  auto opened = WeightsFile::open(files(), path);
  EXPECT_TRUE(opened) << opened.error().message;
  if (!opened) return nullptr;
  return std::make_shared<const WeightsFile>(*std::move(opened));
}

std::string reason(const std::string& path) {
  const auto opened = WeightsFile::open(files(), path);
  return opened ? "" : opened.error().message;
}

bool same_tensor(const checkpoint::StoredTensor& a, const checkpoint::StoredTensor& b) {
  return a.name == b.name && a.dtype == b.dtype && a.shape == b.shape &&
         std::ranges::equal(a.data, b.data);
}

/// Bytes of the image that a source packs into, without the digest of its files.
std::vector<std::uint32_t> packed_checksums(const model::ModelSource& source) {
  ThreadPool threads(1);
  const auto image = model::build_image(source, {}, threads);
  EXPECT_TRUE(image) << image.error().message;
  const auto mapping = map_fd(image->fd.get(), image->size_bytes, MapAccess::kReadOnly);
  const auto view = checkpoint::WeightImageView::open(mapping->bytes());
  EXPECT_TRUE(view);
  std::vector<std::uint32_t> checksums;
  for (const auto& entry : view->entries())
    checksums.push_back(entry.crc32c);
  return checksums;
}

std::vector<std::string> every_model() {
  std::vector<std::string> paths;
  for (const char* name :
       {"f32", "q8_0", "q4_1", "mixed", "mixed-k", "q2_k", "q3_k", "q5_0", "q5_k", "untied",
        "rope-freqs", "qwen2-q4_1", "qwen3-q8_0", "smollm3-mixed"}) {
    paths.push_back(model::tiny_model_path(name));
  }
  for (const char* name : {"llama2", "llama3", "mistral", "qwen2", "qwen3", "smollm3"})
    paths.push_back(model::family_path(name));
  return paths;
}

class FrozenModel : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Models, FrozenModel, testing::ValuesIn(every_model()),
                         [](const auto& info) {
                           std::string name = std::filesystem::path(info.param).stem();
                           std::erase_if(name, [](char c) { return c == '-' || c == '.'; });
                           return name + std::to_string(info.index);
                         });

TEST_P(FrozenModel, ComesBackByteForByteAndBitForBit) {
  const ScratchFolder folder;
  const model::ModelSource source = model::model_source(GetParam());
  const auto expected = packed_checksums(source);
  model::Harness original(source, {});
  const auto tokens = model::random_tokens(24, source.config.vocab_size, 7);
  const auto logits = model::all_logits(original, tokens, 0);
  std::set<std::string> fingerprints;
  for (const std::uint32_t ranks : {1U, 3U, 16U}) {
    const std::string path = folder / ("w" + std::to_string(ranks) + ".thaw");
    const auto frozen = freeze(source, path, ranks);
    ASSERT_TRUE(frozen) << frozen.error().message;
    fingerprints.insert(frozen->fingerprint);
    const auto file = open(path);
    ASSERT_NE(file, nullptr);
    EXPECT_EQ(file->files().size(), ranks);
    std::size_t found = 0;
    for (const checkpoint::StoredTensor& tensor : source.tensors->tensors()) {
      const auto* back = file->find_tensor(tensor.name);
      if (back == nullptr) continue;  // a table that follows from the configuration
      EXPECT_TRUE(same_tensor(tensor, *back)) << tensor.name << ", " << ranks << " ranks";
      ++found;
    }
    EXPECT_EQ(found, model::tensor_list(source.config).size());
    EXPECT_EQ(found, file->tensors().size());
    ThreadPool threads(2);
    EXPECT_TRUE(file->verify(threads));

    model::ModelSource restored = source;
    restored.tensors = file;
    EXPECT_EQ(packed_checksums(restored), expected);
    model::Harness harness(restored, {});
    const auto again = model::all_logits(harness, tokens, 0);
    ASSERT_EQ(again.size(), logits.size());
    for (std::size_t row = 0; row < logits.size(); ++row)
      EXPECT_TRUE(model::same_bits(logits[row], again[row])) << row;
  }
  EXPECT_EQ(fingerprints.size(), 1U) << "shards are of one model, however many";
}

TEST(RegionLayout, IsThatOfVllmsParameters) {
  const model::ModelSource source = model::hf_source(model::family_path("qwen2"));
  const auto regions = layout_regions(source);
  ASSERT_TRUE(regions);
  std::vector<std::string> names;
  for (const RegionTensors& region : *regions) {
    std::string name;
    for (const auto* tensor : region)
      name += (name.empty() ? "" : "+") + std::string(tensor->name);
    names.push_back(name);
  }
  const std::string layer = "model.layers.0.";
  const std::vector<std::string> first{
      "model.embed_tokens.weight",
      layer + "self_attn.q_proj.weight+" + layer + "self_attn.k_proj.weight+" + layer +
          "self_attn.v_proj.weight",
      layer + "self_attn.q_proj.bias+" + layer + "self_attn.k_proj.bias+" + layer +
          "self_attn.v_proj.bias",
      layer + "self_attn.o_proj.weight",
      layer + "mlp.gate_proj.weight+" + layer + "mlp.up_proj.weight",
      layer + "mlp.down_proj.weight",
      layer + "input_layernorm.weight",
      layer + "post_attention_layernorm.weight"};
  ASSERT_GT(names.size(), first.size());
  EXPECT_EQ(std::vector(names.begin(), names.begin() + 8), first);
  EXPECT_THAT(names, testing::Contains("model.norm.weight"));
}

/// What the public project writes of a model with Hugging Face's names: a region for each parameter
/// of vLLM's module.
void write_public(const model::ModelSource& source, const std::string& path) {
  const auto regions = layout_regions(source);
  ASSERT_TRUE(regions);
  auto writer = kvsnap::ContainerWriter::create(files(), path, {regions->size(), 0, "", 1, 4096});
  ASSERT_TRUE(writer);
  std::uint32_t id = 0;
  for (const RegionTensors& region : *regions) {
    kvsnap::ContainerWriter::Pieces pieces;
    for (const auto* tensor : region)
      pieces.push_back(tensor->data);
    ASSERT_TRUE((*writer)->add(kvsnap::RegionKind::kWeights, id++, pieces));
  }
  ASSERT_TRUE((*writer)->commit());
}

class PublicWeights : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Families, PublicWeights,
                         testing::Values("llama2", "llama3", "mistral", "qwen2", "qwen3",
                                         "smollm3"));

TEST_P(PublicWeights, AreTheModelThatIsNamed) {
  const ScratchFolder folder;
  const model::ModelSource source = model::hf_source(model::family_path(GetParam()));
  const std::string path = folder / "w.thaw";
  write_public(source, path);
  auto reader = kvsnap::ContainerReader::open(files(), path);
  ASSERT_TRUE(reader);
  EXPECT_TRUE(is_public_weights(*reader));
  WeightsDocument document = describe(source);
  const auto opened =
      open_public_weights(*std::move(reader), document, source.config, kvsnap::Verify::kChecksums);
  ASSERT_TRUE(opened) << opened.error().message;
  ASSERT_EQ(opened->tensors().size(), model::tensor_list(source.config).size());
  for (const checkpoint::StoredTensor& tensor : opened->tensors()) {
    const auto* original = source.tensors->find_tensor(tensor.name);
    ASSERT_NE(original, nullptr) << tensor.name;
    EXPECT_TRUE(same_tensor(tensor, *original)) << tensor.name;
  }
  ThreadPool threads(1);
  EXPECT_TRUE(opened->verify(threads));

  // Another model's files have another count of parameters, or other sizes.
  auto other = source.config;
  other.intermediate_size += 64;
  reader = kvsnap::ContainerReader::open(files(), path);
  EXPECT_THAT(open_public_weights(*std::move(reader), document, other, kvsnap::Verify::kChecksums)
                  .error()
                  .message,
              HasSubstr("mlp.gate_proj.weight"));
  other.num_layers += 1;
  reader = kvsnap::ContainerReader::open(files(), path);
  EXPECT_THAT(open_public_weights(*std::move(reader), document, other, kvsnap::Verify::kChecksums)
                  .error()
                  .message,
              HasSubstr("weights, the model has"));
}

class Shards : public testing::Test {
 protected:
  ScratchFolder folder_;
  const std::string path_ = folder_ / "w.thaw";
  const std::string other_ = folder_ / "w.rank1.thaw";
  const model::ModelSource source_ = model::model_source(model::tiny_model_path("q4_1"));
};

TEST_F(Shards, ThatDoNotBelongTogetherAreRefused) {
  ASSERT_TRUE(freeze(source_, path_, 2));
  EXPECT_THAT(reason(other_), HasSubstr("is the shard of rank 1 of 2; name that of rank 0"));
  std::filesystem::rename(other_, folder_ / "kept");
  EXPECT_THAT(reason(path_), HasSubstr("w.rank1.thaw is missing; the model is split over 2 files"));
  std::filesystem::copy(path_, other_);
  EXPECT_THAT(reason(path_), HasSubstr("is of another freeze"));
  const auto others = model::model_source(model::tiny_model_path("f32"));
  ASSERT_TRUE(freeze(others, folder_ / "x.thaw", 2));
  std::filesystem::rename(folder_ / "x.rank1.thaw", other_);
  EXPECT_THAT(reason(path_), HasSubstr("is of another freeze than"));
  std::filesystem::rename(folder_ / "kept", other_);
  EXPECT_EQ(reason(path_), "");
}

TEST_F(Shards, ADamagedOneIsFoundBeforeItIsUsed) {
  ASSERT_TRUE(freeze(source_, path_, 2));
  std::fstream(other_, std::ios::binary | std::ios::in | std::ios::out).seekp(8200).put('x');
  const auto file = open(path_);
  ASSERT_NE(file, nullptr);
  ThreadPool threads(1);
  EXPECT_THAT(file->verify(threads).error().message, HasSubstr("w.rank1.thaw: weights 0"));
  model::ModelSource restored = source_;
  restored.tensors = file;
  const auto image = model::build_image(restored, {}, threads);
  ASSERT_FALSE(image);
  EXPECT_EQ(image.error().code, Errc::kDataLoss);
  const auto unchecked = WeightsFile::open(files(), path_, kvsnap::Verify::kNothing);
  ASSERT_TRUE(unchecked);
  EXPECT_TRUE(unchecked->verify(threads));
}

TEST_F(Shards, OneThatCannotBeWrittenLeavesNone) {
  std::filesystem::create_directory(other_);
  EXPECT_FALSE(freeze(source_, path_, 2));
  std::size_t left = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder_.path()))
    left += entry.path() != other_ ? 1 : 0;
  EXPECT_EQ(left, 0U);
}

/// A file in memory that can be opened by name.
class MemoryFile {
 public:
  MemoryFile() : fd_(::memfd_create("thaw-test", MFD_CLOEXEC)) {}
  std::string write(const std::string& bytes) {
    if (::ftruncate(fd_.get(), 0) != 0 ||
        ::pwrite(fd_.get(), bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) {
      throw std::runtime_error("cannot write to memory");
    }
    return "/proc/self/fd/" + std::to_string(fd_.get());
  }

 private:
  UniqueFd fd_;
};

std::string read_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class MutatedWeights : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(freeze(source_, folder_ / "w.thaw"));
    whole_ = read_bytes(folder_ / "w.thaw");
    const auto reader = kvsnap::ContainerReader::open(files(), folder_ / "w.thaw");
    ASSERT_TRUE(reader);
    regions_ = reader->regions();
  }

  /// The file with another document, whose checksum is right.
  std::string with_document(const std::string& text) {
    std::vector<kvsnap::Region> regions = regions_;
    kvsnap::Region& metadata = regions.back();
    metadata.size_bytes = text.size();
    metadata.crc32c = crc32c(std::as_bytes(std::span(text)));
    const auto head = kvsnap::encode_container({2, "", regions});
    std::string bytes = whole_.substr(0, metadata.offset) + text;
    std::memcpy(bytes.data(), head.data(), head.size());
    return bytes;
  }
  std::string document() const {
    return whole_.substr(regions_.back().offset, regions_.back().size_bytes);
  }

  /// Whether it was refused. Where it was not, every tensor has the bytes that were frozen.
  bool is_refused(const std::string& bytes) {
    const auto file = WeightsFile::open(files(), memory_.write(bytes));
    if (!file) {
      EXPECT_FALSE(file.error().message.empty());
      return true;
    }
    ThreadPool threads(1);
    if (!file->verify(threads)) return true;
    for (const checkpoint::StoredTensor& tensor : file->tensors()) {
      const auto* original = source_.tensors->find_tensor(tensor.name);
      const bool is_right = original == nullptr || same_tensor(tensor, *original);
      EXPECT_TRUE(is_right) << tensor.name;
    }
    return false;
  }

  ScratchFolder folder_;
  const model::ModelSource source_ = model::model_source(model::tiny_model_path("q4_1"));
  std::string whole_;
  std::vector<kvsnap::Region> regions_;
  MemoryFile memory_;
};

TEST_F(MutatedWeights, AreRefusedOrIntact) {
  std::mt19937_64 random(3);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = whole_;
    const std::size_t where = random() % 3 == 0 ? random() % 5200 : random() % bytes.size();
    if (i % 4 == 0) {
      bytes.resize(random() % bytes.size());
    } else if (i % 4 == 1) {
      const std::uint64_t value = random() % 3 == 0 ? ~0ULL : random() % (2 * bytes.size());
      std::memcpy(bytes.data() + std::min(where, bytes.size() - 8), &value, 8);
    } else {
      bytes[where] = static_cast<char>(bytes[where] ^ (1 << random() % 8));
    }
    refused += is_refused(bytes) ? 1 : 0;
  }
  EXPECT_GT(refused, 1000);
}

TEST_F(MutatedWeights, DocumentsThatLieAreRefused) {
  const auto lie = [&](const std::function<void(ordered_json&)>& change) {
    ordered_json changed = ordered_json::parse(document());
    change(changed);
    return reason(memory_.write(with_document(changed.dump())));
  };
  EXPECT_EQ(lie([](auto&) {}), "");
  EXPECT_THAT(lie([](auto& d) { d["content"] = "kv"; }), HasSubstr("supported are weights"));
  EXPECT_THAT(lie([](auto& d) { d.erase("content"); }), HasSubstr("does not say what"));
  EXPECT_THAT(lie([](auto& d) { d["format"] = 2; }), HasSubstr("of format 2"));
  EXPECT_THAT(lie([](auto& d) { d.erase("fingerprint"); }), HasSubstr("fingerprint is missing"));
  EXPECT_THAT(lie([](auto& d) { d["model"] = 7; }), HasSubstr("model is of another type"));
  EXPECT_THAT(lie([](auto& d) { d["tensor_parallel_size"] = 0; }), HasSubstr("rank 0 of 0"));
  EXPECT_THAT(lie([](auto& d) { d["tensor_parallel_size"] = 1U << 31; }), HasSubstr("cannot be"));
  EXPECT_THAT(lie([](auto& d) { d["container"] = "zip"; }), HasSubstr("'zip' is not known"));
  EXPECT_THAT(lie([](auto& d) { d["gguf_metadata"] = "?"; }), HasSubstr("no base64"));
  EXPECT_THAT(lie([](auto& d) { d["tensors"] = 1; }), HasSubstr("tensors is no list"));
  EXPECT_THAT(lie([](auto& d) { d["tensors"][0]["dtype"] = "Q9"; }),
              HasSubstr("type 'Q9' is not known"));
  EXPECT_THAT(lie([](auto& d) { d["tensors"][0]["region"] = 999; }),
              HasSubstr("weights 999, which the file does not have"));
  EXPECT_THAT(lie([](auto& d) { d["tensors"][0]["offset"] = 32; }),
              HasSubstr("of which 0 are taken"));
  EXPECT_THAT(lie([](auto& d) { d["tensors"][0]["shape"][0] = 1LL << 40; }),
              HasSubstr("are taken"));
  EXPECT_THAT(lie([](auto& d) {
                d["tensors"][0]["shape"] = {1LL << 47, 1LL << 47, 32};
              }),
              HasSubstr("a shape that cannot be"));
  EXPECT_THAT(lie([](auto& d) {
                d["tensors"][0]["shape"] = {0, 64};
              }),
              HasSubstr("a shape that cannot be"));
  EXPECT_THAT(lie([](auto& d) { d["tensors"][0]["rows"] = {0, 4}; }), HasSubstr("have"));
  EXPECT_THAT(lie([](auto& d) { d["tensors"][0]["rows"] = {5, 4}; }), HasSubstr("no range"));
  EXPECT_THAT(lie([](auto& d) { d["tensors"].erase(3); }), HasSubstr("but tensors for 0"));
  EXPECT_THAT(lie([](auto& d) { d["tensors"][1]["name"] = d["tensors"][2]["name"]; }),
              HasSubstr("occurs twice"));
  EXPECT_THAT(reason(memory_.write(with_document("{"))), HasSubstr("no JSON object"));
  EXPECT_THAT(reason(memory_.write(with_document("[1]"))), HasSubstr("no JSON object"));
}

TEST_F(MutatedWeights, FilesOfOtherProgramsSayWhatIsMissing) {
  const auto head = kvsnap::encode_container({2, "", {regions_.begin(), regions_.end() - 1}});
  std::string bytes = whole_;
  std::memcpy(bytes.data(), head.data(), head.size());
  EXPECT_THAT(reason(memory_.write(bytes)), HasSubstr("it has no metadata"));
}

}  // namespace
}  // namespace thaw::cli
