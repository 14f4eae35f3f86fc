// Handle directories: golden ones are read for what they say, what lies is refused with a reason.

#include <filesystem>
#include <functional>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "engine/base/hash.h"
#include "kvsnap/container_reader.h"
#include "kvsnap/handle_lineage.h"
#include "kvsnap/kv_file.h"
#include "tests/checkpoint/scratch_folder.h"
#include "tests/kvsnap/handle_fixture.h"

namespace thaw::kvsnap {
namespace {

using checkpoint::ScratchFolder;
using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

FileIo& disk() {
  return system_io(IoMode::kNoLinks);
}

HandleDirectory open_golden(const std::string& name) {
  auto opened = HandleDirectory::open(disk(), golden_handle(name));
  EXPECT_TRUE(opened) << opened.error().message;
  return *std::move(opened);
}

TEST(HandleDirectory, AGoldenOneSaysWhatWasWritten) {
  const HandleDirectory trunk = open_golden("trunk");
  const Handle& handle = trunk.handle();
  EXPECT_EQ(handle.model_id, "org/tiny");
  EXPECT_EQ(handle.label, "trunk");
  EXPECT_EQ(handle.parent_id, std::nullopt);
  EXPECT_EQ(handle.handle_id.size(), 32U);
  EXPECT_EQ(handle.prefix_tokens, 12U);
  EXPECT_EQ(handle.num_kv_blocks, 3U);
  EXPECT_EQ(handle.max_block_id, 11);
  EXPECT_EQ(handle.block_shape, (std::vector<std::uint64_t>{2, 4, 1, 2}));
  EXPECT_EQ(handle.prefix_token_ids->front(), 11);
  EXPECT_EQ(handle.vllm_version, "0.19.0");
  EXPECT_DOUBLE_EQ(handle.created_at, 1781234567.25);
  EXPECT_FALSE(handle.has_weights);
  ASSERT_TRUE(trunk.kv());
  EXPECT_EQ(trunk.kv()->layout, "coalesced");
  EXPECT_EQ(trunk.kv()->payload_bytes(), 2U * 3 * 32);
  EXPECT_EQ(trunk.kv_bytes(), 4352U);
  EXPECT_THAT(trunk.files(), ElementsAre("kv.thawkv", "kv.thawkv.meta", "handle.json"));
  ThreadPool threads(1);
  const auto verified = trunk.verify(threads);
  ASSERT_TRUE(verified);
  EXPECT_TRUE(*verified);
}

TEST(HandleDirectory, EveryFormOpens) {
  ThreadPool threads(1);
  EXPECT_EQ(open_golden("slabs").kv()->layout, "");
  EXPECT_EQ(open_golden("slabs").kv()->num_blocks, 3U);
  const HandleDirectory old_form = open_golden("old-form");
  EXPECT_EQ(old_form.kv()->num_blocks, 3U);
  EXPECT_FALSE(*old_form.verify(threads)) << "it has no checksums";
  const HandleDirectory described = open_golden("described");
  EXPECT_EQ(described.kv_bytes(), 0U);
  EXPECT_EQ(described.kv()->num_blocks, 3U);
  EXPECT_EQ(open_golden("empty").handle().num_kv_blocks, 0U);
  const HandleDirectory ranks = open_golden("ranks");
  EXPECT_THAT(ranks.files(),
              ElementsAre("kv.thawkv", "kv.thawkv.meta", "kv.rank1.thawkv", "kv.rank1.thawkv.meta",
                          "weights.thaw", "weights.rank1.thaw", "handle.json"));
  EXPECT_FALSE(*ranks.verify(threads)) << "one of its shards is of version 1";
  // By its handle.json too, and with a slash behind.
  EXPECT_TRUE(HandleDirectory::open(disk(), golden_handle("trunk") + "/handle.json"));
  EXPECT_TRUE(HandleDirectory::open(disk(), golden_handle("trunk") + "//"));
}

TEST(HandleDirectory, IsSavedByteForByteUnderAnotherName) {
  const ScratchFolder folder;
  for (const char* name : {"trunk", "slabs", "old-form", "described", "empty", "ranks"}) {
    const HandleDirectory source = open_golden(name);
    Handle child = source.handle();
    child.handle_id = std::string(32, 'c');
    child.parent_id = source.handle().handle_id;
    child.label = "\"child\"\n";
    const std::string target = folder / name;
    ASSERT_TRUE(make_handle_directory(target));
    ASSERT_TRUE(source.save(target, child, true)) << name;
    const auto saved = HandleDirectory::open(disk(), target);
    ASSERT_TRUE(saved) << saved.error().message;
    EXPECT_EQ(saved->files(), source.files());
    EXPECT_EQ(saved->handle().parent_id, source.handle().handle_id);
    EXPECT_EQ(saved->handle().label, child.label);
    EXPECT_EQ(saved->handle().prefix_token_ids, source.handle().prefix_token_ids);
    EXPECT_EQ(saved->handle().has_weights, source.handle().has_weights);
    for (const std::string& file : source.files()) {
      if (file == kHandleFile) continue;
      EXPECT_EQ(file_bytes_of(target + "/" + file),
                file_bytes_of(golden_handle(name) + "/" + file));
    }
  }
  const HandleDirectory ranks = open_golden("ranks");
  const std::string light = folder / "light";
  ASSERT_TRUE(make_handle_directory(light));
  ASSERT_TRUE(ranks.save(light, ranks.handle(), false));
  const auto saved = HandleDirectory::open(disk(), light);
  ASSERT_TRUE(saved) << saved.error().message;
  EXPECT_THAT(saved->files(), ElementsAre("kv.thawkv.meta", "kv.rank1.thawkv.meta", "handle.json"));
  EXPECT_FALSE(saved->handle().has_weights);
}

TEST(HandleDirectory, ADescriptionIsEncodedAsItWasRead) {
  for (const char* name : {"trunk", "slabs"}) {
    const HandleDirectory source = open_golden(name);
    const auto again = KvDescription::decode(source.kv()->encode());
    ASSERT_TRUE(again);
    EXPECT_EQ(again->encode(), source.kv()->encode());
    const std::string golden = text_of(file_bytes_of(golden_handle(name) + "/kv.thawkv.meta"));
    const json ours = json::parse(*kv_description_text(source.kv()->encode()));
    const json theirs = json::parse(*kv_description_text(golden));
    for (const auto& [key, value] : theirs.items())
      EXPECT_EQ(ours[key], value) << key;
  }
}

TEST(HandleDirectory, AFileOfKvThatTheServerWroteIsItsPayload) {
  KvDocument document;
  document.owner = {"", "", "org/tiny", ""};
  document.engine_fingerprint = hash_text("engine");
  document.cache_root = make_cache_root(document.engine_fingerprint, "", "", "");
  document.kv_layout = "bf16 [layers=2][k,v][kv_heads=3][head_dim=8]";
  document.block_size = kBlockSize;
  document.block_bytes = std::uint64_t{2} * 2 * kBlockSize * 3 * 8 * 2;
  for (TokenId token = 0; token < 3 * kBlockSize; ++token)
    document.token_ids.push_back(token);
  const Bytes block(document.block_bytes, std::byte{7});
  const std::vector<std::span<const std::byte>> blocks(3, block);
  CrashIo io;
  ASSERT_TRUE(write_kv_file(io, "h/kv.thawkv", document, blocks));
  Handle handle;
  handle.model_id = "org/tiny";
  handle.prefix_tokens = 3 * kBlockSize;
  handle.block_shape = {2, kBlockSize, 3, 8};
  handle.num_layers = 2;
  handle.num_kv_blocks = 3;
  handle.max_block_id = 2;
  ASSERT_TRUE(write_handle(io, "h", handle, {}));
  const auto opened = HandleDirectory::open(io, "h");
  ASSERT_TRUE(opened) << opened.error().message;
  EXPECT_EQ(opened->kv()->payload_bytes(), 3 * document.block_bytes);
  EXPECT_THAT(opened->kv()->layout, testing::StartsWith("thaw bf16"));
  EXPECT_EQ(opened->kv()->dtype, "torch.bfloat16");
}

TEST(HandleDirectory, NoLinkAndNoPathLeadsOut) {
  const ScratchFolder folder;
  const std::string target = folder / "handle";
  std::filesystem::copy(golden_handle("ranks"), target);
  const auto reason = [&] {
    const auto opened = HandleDirectory::open(disk(), target);
    return opened ? "" : opened.error().message;
  };
  // Paths of handle.json are those of another machine: files of these names there are not looked
  // at.
  json manifest = json::parse(text_of(file_bytes_of(target + "/handle.json")));
  manifest["kv_path"] = "../../secret";
  manifest["weights_path"] = "/etc/passwd";
  folder.write("handle/handle.json", manifest.dump());
  EXPECT_EQ(reason(), "");
  for (const char* name : {"kv.thawkv", "kv.thawkv.meta", "kv.rank1.thawkv", "weights.rank1.thaw",
                           "weights.thaw", "handle.json"}) {
    const std::string file = target + "/" + name;
    std::filesystem::rename(file, folder / "outside");
    std::filesystem::create_symlink(folder / "outside", file);
    EXPECT_THAT(reason(), HasSubstr(file + " is a symbolic link")) << name;
    std::filesystem::remove(file);
    std::filesystem::create_directory(file);
    EXPECT_THAT(reason(), HasSubstr("is not a regular file")) << name;
    std::filesystem::remove(file);
    std::filesystem::rename(folder / "outside", file);
  }
  EXPECT_EQ(reason(), "");
}

TEST(HandleDirectory, IsWrittenToNothingButANewDirectory) {
  const ScratchFolder folder;
  EXPECT_TRUE(make_handle_directory(folder / "a/b/c"));
  EXPECT_TRUE(make_handle_directory(folder / "a/b/c")) << "it is empty";
  // What a killed save() leaves.
  folder.write("a/b/c/kv.thawkv", "x");
  folder.write("a/b/c/kv.rank1.thawkv.meta.thaw-incomplete", "x");
  EXPECT_TRUE(make_handle_directory(folder / "a/b/c"));
  folder.write("a/b/c/handle.json", "{}");
  EXPECT_THAT(make_handle_directory(folder / "a/b/c").error().message, HasSubstr("it is a handle"));
  folder.write("d/notes.txt", "x");
  EXPECT_THAT(make_handle_directory(folder / "d").error().message, HasSubstr("holds notes.txt"));
  EXPECT_FALSE(make_handle_directory(folder / "d/notes.txt/x"));
}

class LyingHandle : public testing::Test {
 protected:
  /// Why the golden trunk is refused with another manifest or description.
  std::string reason(
      const std::function<void(json&)>& manifest,
      const std::function<void(json&)>& description = [](json&) {}) {
    Files files = golden_files("trunk", "h");
    json changed = json::parse(text_of(files["h/handle.json"]));
    manifest(changed);
    files["h/handle.json"] = bytes_of(changed.dump());
    const std::string sidecar = text_of(files["h/kv.thawkv.meta"]);
    json described = json::parse(*kv_description_text(sidecar));
    description(described);
    std::string head = sidecar.substr(0, 8);
    const std::string body = described.dump();
    for (int i = 0; i < 4; ++i)
      head += static_cast<char>(body.size() >> (8 * i));
    files["h/kv.thawkv.meta"] = bytes_of(head + body);
    CrashIo io(std::move(files));
    const auto opened = HandleDirectory::open(io, "h");
    return opened ? "" : opened.error().message;
  }
  static void nothing(json&) {}
};

TEST_F(LyingHandle, IsRefusedWithAReason) {
  EXPECT_EQ(reason(nothing), "");
  const auto manifest = [&](const char* key, const json& value) {
    return reason([&](json& m) { m[key] = value; });
  };
  EXPECT_THAT(manifest("version", 2), HasSubstr("version 2; supported is 1"));
  EXPECT_THAT(manifest("model_id", nullptr), HasSubstr("model_id is null, not a text"));
  EXPECT_THAT(manifest("num_layers", 3),
              HasSubstr("num_layers 3, the description of its blocks 2"));
  EXPECT_THAT(manifest("num_layers", 1ULL << 40), HasSubstr("num_layers is 1099511627776"));
  EXPECT_THAT(manifest("num_kv_blocks", 4), HasSubstr("num_kv_blocks 4"));
  EXPECT_THAT(manifest("max_block_id", 5), HasSubstr("max_block_id 5"));
  EXPECT_THAT(manifest("prefix_tokens", 13), HasSubstr("prefix_tokens 13"));
  EXPECT_THAT(manifest("prefix_tokens", -1), HasSubstr("prefix_tokens is -1"));
  EXPECT_THAT(manifest("block_shape", {2, 4, 1, 4}), HasSubstr("differ in block_shape"));
  EXPECT_THAT(manifest("handle_id", "../x y"), HasSubstr("handle_id is no identifier"));
  EXPECT_THAT(manifest("parent_id", std::string(200, 'a')),
              HasSubstr("parent_id is no identifier"));
  EXPECT_THAT(manifest("prefix_token_ids", {1, -2}), HasSubstr("an id below 0"));
  EXPECT_THAT(manifest("prefix_token_ids", {1, 1ULL << 33}), HasSubstr("not such a list"));
  EXPECT_THAT(manifest("tensor_parallel_size", 0), HasSubstr("tensor_parallel_size is 0"));
  EXPECT_THAT(manifest("tensor_parallel_size", 1U << 20), HasSubstr("cannot be"));
  EXPECT_THAT(manifest("created_at", "now"), HasSubstr("not a finite number"));
  EXPECT_THAT(reason([](json& m) { m = json::array(); }), HasSubstr("it is no JSON object"));
  EXPECT_THAT(reason([](json& m) { m.erase("version"); }), HasSubstr("version is missing"));

  const auto described = [&](const char* key, const json& value) {
    return reason(nothing, [&](json& d) { d[key] = value; });
  };
  EXPECT_THAT(described("num_blocks", 4), HasSubstr("block_ids has 3 entries for 4 blocks"));
  EXPECT_THAT(described("block_ids", {5, 5, 11}), HasSubstr("block id 5 occurs twice"));
  EXPECT_THAT(described("block_ids", {5, 8, 1ULL << 32}), HasSubstr("block id 4294967296"));
  EXPECT_THAT(described("block_hashes", {"a", "b"}), HasSubstr("block_hashes has 2 entries"));
  EXPECT_THAT(described("block_hashes", {"a", "b", 1}), HasSubstr("something other than texts"));
  EXPECT_THAT(described("num_layers", 0), HasSubstr("num_layers is 0"));
  EXPECT_THAT(described("block_bytes", 64), HasSubstr("16 elements of torch.float16 take 32"));
  EXPECT_THAT(described("block_bytes", 1ULL << 60), HasSubstr("which cannot be"));
  EXPECT_THAT(described("block_shape", {2, 4, 1ULL << 62, 2}), HasSubstr("which cannot be"));
  EXPECT_THAT(described("block_shape", {3, 4, 1, 2}), HasSubstr("is not [2, block_size"));
  EXPECT_THAT(described("block_size", 0), HasSubstr("block_size is 0"));
  EXPECT_THAT(described("slab_nbytes", 17), HasSubstr("slab_nbytes is 17, not 16"));
  EXPECT_THAT(described("num_slots", 2), HasSubstr("num_slots is 2, not 3"));
  EXPECT_THAT(described("coalesced_bytes", 1), HasSubstr("coalesced_bytes is 1, not 192"));
  // Every figure agrees, but the payload is another.
  EXPECT_THAT(reason([](json& m) { m["num_layers"] = 4; },
                     [](json& d) {
                       d["num_layers"] = 4;
                       d["coalesced_bytes"] = 384;
                     }),
              HasSubstr("holds 192 bytes of blocks; its description says 384"));
}

TEST_F(LyingHandle, AMissingPartIsNamed) {
  const auto without = [](const std::string& golden, const std::string& name) {
    Files files = golden_files(golden, "h");
    files.erase("h/" + name);
    CrashIo io(std::move(files));
    const auto opened = HandleDirectory::open(io, "h");
    if (!opened) return opened.error().message;
    ThreadPool threads(1);
    const auto verified = opened->verify(threads);
    return verified ? std::string() : verified.error().message;
  };
  EXPECT_THAT(without("trunk", "handle.json"), HasSubstr("h is no handle"));
  EXPECT_THAT(without("trunk", "kv.thawkv.meta"), HasSubstr("h/kv.thawkv.meta is missing"));
  EXPECT_EQ(without("trunk", "kv.thawkv"), "") << "only the description is here";
  EXPECT_THAT(without("ranks", "kv.rank1.thawkv"), HasSubstr("h/kv.rank1.thawkv is missing"));
  EXPECT_THAT(without("ranks", "weights.rank1.thaw"), HasSubstr("h/weights.rank1.thaw is missing"));
}

TEST(HandleLineage, BlocksAndTokensAreComparedByTheirNames) {
  const HandleDirectory planner = open_golden("planner");
  const HandleDirectory critic = open_golden("critic");
  const HandleComparison found = compare_handles(planner, critic);
  EXPECT_TRUE(found.same_model && found.same_layout && found.has_hashes);
  EXPECT_EQ(found.shared_blocks, 2U);
  EXPECT_EQ(found.only_a_blocks, 2U);
  EXPECT_EQ(found.only_b_blocks, 1U);
  EXPECT_EQ(found.block_size, 4U);
  EXPECT_EQ(found.block_bytes, 64U);
  EXPECT_EQ(found.shared_token_ids, 10U);
  EXPECT_EQ(compare_handles(open_golden("slabs"), critic).shared_token_ids, std::nullopt);
  EXPECT_FALSE(compare_handles(open_golden("empty"), critic).has_hashes);
  EXPECT_FALSE(compare_handles(open_golden("ranks"), critic).same_layout);
}

TEST(HandleLineage, IsATree) {
  auto paths = find_handles(disk(), golden_handle("."));
  ASSERT_TRUE(paths);
  EXPECT_EQ(paths->size(), 8U);
  std::vector<HandleDirectory> handles;
  for (const char* name : {"critic", "planner", "trunk", "empty"})
    handles.push_back(open_golden(name));
  const Lineage lineage = trace_lineage(handles);
  EXPECT_THAT(lineage.roots, ElementsAre(2, 3));
  EXPECT_THAT(lineage.nodes[2].children, ElementsAre(0, 1));
  EXPECT_EQ(lineage.nodes[0].parent, 2U);
  EXPECT_EQ(lineage.nodes[0].shared_with_parent, 2U);
  EXPECT_EQ(lineage.held_blocks, 3U + 4 + 3);
  EXPECT_EQ(lineage.distinct_blocks, 3U + 2 + 1);
  EXPECT_EQ(find_handles(disk(), golden_handle("none")).error().code, Errc::kNotFound);
}

TEST(HandleLineage, CirclesAreCut) {
  const HandleDirectory golden = open_golden("described");
  const ScratchFolder folder;
  std::vector<HandleDirectory> handles;
  const std::vector<std::pair<std::string, std::string>> ids{{"a", "b"}, {"b", "c"}, {"c", "a"},
                                                             {"d", "d"}, {"e", "a"}, {"a", "e"}};
  for (std::size_t i = 0; i < ids.size(); ++i) {
    Handle handle = golden.handle();
    handle.handle_id = ids[i].first;
    handle.parent_id = ids[i].second;
    const std::string path = folder / std::to_string(i);
    ASSERT_TRUE(make_handle_directory(path));
    ASSERT_TRUE(golden.save(path, handle, true));
    handles.push_back(*HandleDirectory::open(disk(), path));
  }
  const Lineage lineage = trace_lineage(handles);
  std::size_t linked = 0;
  for (std::size_t i = 0; i < handles.size(); ++i) {
    std::size_t steps = 0;
    for (auto at = lineage.nodes[i].parent; at && steps <= ids.size();
         at = lineage.nodes[*at].parent)
      ++steps;
    EXPECT_LE(steps, ids.size()) << i;
    linked += lineage.nodes[i].parent ? 1 : 0;
  }
  EXPECT_EQ(linked + lineage.roots.size(), handles.size());
  EXPECT_EQ(lineage.roots.size(), 2U);
}

}  // namespace
}  // namespace thaw::kvsnap
