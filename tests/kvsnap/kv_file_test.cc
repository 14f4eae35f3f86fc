// Files of KV: round trips, damage, power cuts, full disks, and whose they are.

#include "kvsnap/kv_file.h"

#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "engine/base/base64.h"
#include "engine/base/crc32c.h"
#include "engine/base/hash.h"
#include "tests/kvsnap/container_fixture.h"

namespace thaw::kvsnap {
namespace {

using nlohmann::json;
using testing::HasSubstr;

const std::string kTrunkPath = "folder/trunk.thawkv";
constexpr std::size_t kBlockBytes = 5000;  // no multiple of a page

KvDocument document(std::size_t num_blocks, TokenId first = 7) {
  KvDocument document;
  document.writer = "thaw test";
  document.owner = {"tenant", "salt", "model", "adapter"};
  document.engine_fingerprint = hash_text("engine");
  document.system_fingerprint = "thaw-test-generic";
  document.cache_root = make_cache_root(document.engine_fingerprint, "tenant", "salt", "adapter");
  document.kv_layout = "bf16 [layers=2][k,v][kv_heads=3][head_dim=8]";
  document.block_size = kBlockSize;
  document.block_bytes = kBlockBytes;
  document.prefill_seconds = 0.25;
  for (std::size_t i = 0; i < num_blocks * kBlockSize; ++i)
    document.token_ids.push_back(first + static_cast<TokenId>(i));
  return document;
}

std::vector<Bytes> payloads(std::size_t num_blocks, unsigned seed) {
  std::vector<Bytes> blocks;
  for (std::size_t i = 0; i < num_blocks; ++i)
    blocks.push_back(random_payload(kBlockBytes, seed + static_cast<unsigned>(i)));
  return blocks;
}

Result<void> write(FileIo& io, const KvDocument& what, const std::vector<Bytes>& blocks) {
  const std::vector<std::span<const std::byte>> spans(blocks.begin(), blocks.end());
  return write_kv_file(io, kTrunkPath, what, spans);
}

/// The file's first blocks, or why not.
Result<std::vector<Bytes>> read(FileIo& io, ThreadPool& threads, std::size_t num_blocks = 0) {
  const auto file = KvFile::open(io, kTrunkPath, threads);
  if (!file) return file.error();
  if (num_blocks == 0) num_blocks = file->document().num_blocks();
  std::vector<Bytes> blocks(num_blocks, Bytes(file->document().block_bytes));
  const std::vector<std::span<std::byte>> spans(blocks.begin(), blocks.end());
  if (auto done = file->read(spans, threads); !done) return done.error();
  return blocks;
}

class KvFileTest : public testing::Test {
 protected:
  Files whole() {
    CrashIo io;
    EXPECT_TRUE(write(io, document(3), payloads(3, 1)));
    return io.files();
  }
  std::string reason(Files files) {
    CrashIo io(std::move(files));
    const auto blocks = read(io, threads);
    return blocks ? "" : blocks.error().message;
  }

  ThreadPool threads{2};
};

TEST_F(KvFileTest, IsReadAsItWasWritten) {
  CrashIo io;
  const auto blocks = payloads(3, 1);
  ASSERT_TRUE(write(io, document(3), blocks));
  const auto file = KvFile::open(io, kTrunkPath, threads);
  ASSERT_TRUE(file) << file.error().to_string();
  EXPECT_EQ(file->document().to_json().value(), document(3).to_json().value());
  EXPECT_EQ(read(io, threads).value(), blocks);
  EXPECT_EQ(read(io, threads, 2).value(), std::vector<Bytes>(blocks.begin(), blocks.begin() + 2));
  EXPECT_EQ(file->checksum(1), crc32c(blocks[1]));
}

TEST_F(KvFileTest, TheSidecarSaysWhatOtherReadersLookFor) {
  CrashIo io;
  ASSERT_TRUE(write(io, document(3), payloads(3, 1)));
  const Bytes sidecar = io.files().at(kTrunkPath + ".meta");
  const std::string_view text(reinterpret_cast<const char*>(sidecar.data()), sidecar.size());
  ASSERT_TRUE(text.starts_with(std::string_view("THAWKV\0\0", 8)));
  std::uint32_t size = 0;
  std::memcpy(&size, text.data() + 8, sizeof size);
  ASSERT_EQ(size, text.size() - 12);
  const json meta = json::parse(text.substr(12));
  EXPECT_EQ(meta["num_blocks"], 3);
  EXPECT_EQ(meta["block_ids"], json({0, 1, 2}));
  EXPECT_EQ(meta["num_layers"], 2);
  EXPECT_EQ(meta["block_shape"], json({2, 16, 3, 8}));
  EXPECT_EQ(meta["block_bytes"], kBlockBytes / 2) << "of a layer";
  EXPECT_EQ(meta["dtype"], "torch.bfloat16");
  const auto hash = decode_base64(meta["block_hashes"][0].get<std::string>());
  ASSERT_TRUE(hash && hash->size() == 36);
  const KvDocument what = document(3);
  const Hash128 first = chain_block_hash(what.cache_root, std::span(what.token_ids).first(16));
  EXPECT_EQ(std::memcmp(hash->data(), first.bytes.data(), first.bytes.size()), 0);
}

TEST_F(KvFileTest, DamagedFilesAreRefusedOrIntact) {
  const Files files = whole();
  const auto blocks = payloads(3, 1);
  std::mt19937_64 random(5);
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    Files damaged = files;
    Bytes& file = damaged.at(kTrunkPath);
    if (i % 3 == 0) {
      file.resize(random() % file.size());
    } else {
      // Half of it in header and table.
      const std::size_t at = random() % (i % 2 == 0 ? file.size() : 4096 + 4 * 32);
      file[at] ^= static_cast<std::byte>(1U << random() % 8);
    }
    CrashIo io(std::move(damaged));
    const auto read_back = read(io, threads);
    if (read_back) {
      ASSERT_EQ(*read_back, blocks) << i;
    } else {
      ++refused;
      ASSERT_FALSE(read_back.error().message.empty());
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST_F(KvFileTest, BetweenAnyTwoCallsItIsTheOldOrTheNewOne) {
  const Files before = whole();
  CrashIo io(before);
  const auto blocks = payloads(2, 50);
  ASSERT_TRUE(write(io, document(2, 900), blocks));
  for (std::size_t call = 0; call <= io.num_calls(); ++call) {
    for (unsigned seed = 0; seed < 10; ++seed) {
      CrashIo after(io.after_crash(call, 0, {Survival::Kind::kRandom, seed}));
      const auto found = read(after, threads);
      ASSERT_TRUE(found) << found.error().to_string();
      ASSERT_TRUE(*found == blocks || (*found == payloads(3, 1) && call < io.num_calls()));
    }
  }
}

TEST_F(KvFileTest, AFullDiskLeavesTheOldOneOrNothing) {
  for (const Files& before : {whole(), Files()}) {
    CrashIo counted(before);
    ASSERT_TRUE(write(counted, document(2), payloads(2, 50)));
    for (std::size_t call = 0; call + 1 < counted.num_calls(); ++call) {
      CrashIo io(before);
      io.fail_from(call);
      const auto written = write(io, document(2), payloads(2, 50));
      ASSERT_FALSE(written);
      EXPECT_EQ(written.error().code, Errc::kResourceExhausted);
      Files left = io.files();
      if (!before.empty()) left[kTrunkPath + ".meta"] = before.at(kTrunkPath + ".meta");
      EXPECT_EQ(left, before) << call;
    }
  }
}

TEST_F(KvFileTest, FilesWithoutOurMetadataSayWhatIsMissing) {
  CrashIo io;
  ASSERT_TRUE(write_regions(io, kTrunkPath, {{RegionKind::kKvBlock, 0, random_payload(64, 1)}}));
  const auto file = KvFile::open(io, kTrunkPath, threads);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, Errc::kUnsupported);
  CrashIo none;
  EXPECT_EQ(KvFile::open(none, kTrunkPath, threads).error().code, Errc::kNotFound);
}

TEST_F(KvFileTest, RegionsMustAgreeWithTheMetadata) {
  const auto file_of = [](const KvDocument& what, std::size_t num_regions, std::size_t bytes) {
    std::vector<TestRegion> regions;
    for (std::size_t i = 0; i < num_regions; ++i)
      regions.push_back({RegionKind::kKvBlock, static_cast<std::uint32_t>(i), Bytes(bytes)});
    regions.push_back({RegionKind::kMetadata, 0, text_payload(what.to_json().value())});
    CrashIo io;
    EXPECT_TRUE(write_regions(io, kTrunkPath, regions));
    return io.files();
  };
  EXPECT_EQ(reason(file_of(document(2), 2, kBlockBytes)), "");
  EXPECT_THAT(reason(file_of(document(2), 1, kBlockBytes)), HasSubstr("it holds 1 blocks"));
  EXPECT_THAT(reason(file_of(document(2), 3, kBlockBytes)), HasSubstr("it holds 3 blocks"));
  EXPECT_THAT(reason(file_of(document(2), 2, 64)), HasSubstr("block 0 is not where"));
  KvDocument forged = document(2);
  forged.owner.tenant = "another";
  EXPECT_THAT(reason(file_of(forged, 2, kBlockBytes)), HasSubstr("cache_root does not follow"));
}

TEST_F(KvFileTest, DocumentsAreReadWithCare) {
  const json right = json::parse(document(2).to_json().value());
  const auto reason_of = [&](const std::string& key, const json& value) {
    json changed = right;
    if (value.is_null())
      changed.erase(key);
    else
      changed[key] = value;
    const auto parsed = KvDocument::parse(changed.dump());
    return parsed ? "" : parsed.error().message;
  };
  EXPECT_EQ(reason_of("writer", "someone"), "");
  for (const auto& [key, value] : right.items())
    EXPECT_THAT(reason_of(key, nullptr), HasSubstr(key + " is missing"));
  // Other programs' metadata is no damage.
  EXPECT_EQ(KvDocument::parse(R"({"who": "knows"})").error().code, Errc::kUnsupported);
  EXPECT_THAT(reason_of("format", 2), HasSubstr("its format is 2"));
  EXPECT_THAT(reason_of("content", "weights"), HasSubstr("does not hold KV"));
  EXPECT_THAT(reason_of("block_size", 0), HasSubstr("block_size is 0"));
  EXPECT_THAT(reason_of("block_bytes", 0), HasSubstr("block_bytes is 0"));
  EXPECT_THAT(reason_of("block_bytes", ~0ULL), HasSubstr("block_bytes is too large"));
  EXPECT_THAT(reason_of("block_size", -16), HasSubstr("block_size is no number"));
  EXPECT_THAT(reason_of("block_size", 5), HasSubstr("multiple of the block of 5"));
  EXPECT_THAT(reason_of("token_ids", json::array()), HasSubstr("token_ids are no"));
  EXPECT_THAT(reason_of("token_ids", {1, -1}), HasSubstr("no token"));
  EXPECT_THAT(reason_of("token_ids", {1, 1ULL << 40}), HasSubstr("no token"));
  EXPECT_THAT(reason_of("engine_fingerprint", "xyz"), HasSubstr("no hash"));
  EXPECT_THAT(reason_of("engine_fingerprint", std::string(32, 'x')), HasSubstr("no hash"));
  EXPECT_THAT(reason_of("prefill_seconds", -1.0), HasSubstr("no time"));
  EXPECT_FALSE(KvDocument::parse("[]"));
  EXPECT_FALSE(KvDocument::parse("{"));
  KvDocument binary = document(1);
  binary.owner.tenant = "\xff";
  EXPECT_EQ(binary.to_json().error().code, Errc::kInvalidArgument);
}

TEST_F(KvFileTest, KvOfOthersIsRefusedWithAReason) {
  const KvDocument what = document(2);
  const KvFormat format{what.kv_layout, kBlockSize, kBlockBytes, 0, 1};
  const auto check = [&](const Hash128& engine, const KvFormat& ours, const TrunkOwner& owner) {
    const auto checked = check_kv_document(what, engine, "thaw-ours", ours, owner);
    return checked ? std::pair(Errc::kInternal, std::string("right"))
                   : std::pair(checked.error().code, checked.error().message);
  };
  EXPECT_EQ(check(what.engine_fingerprint, format, what.owner).second, "right");
  const auto weights = check(hash_text("other"), format, what.owner);
  EXPECT_EQ(weights.first, Errc::kUnsupported);
  EXPECT_THAT(weights.second, HasSubstr("thaw-test-generic"));
  EXPECT_THAT(weights.second, HasSubstr("thaw-ours"));
  KvFormat other = format;
  other.kv_layout = "f32";
  EXPECT_THAT(check(what.engine_fingerprint, other, what.owner).second, HasSubstr("layout"));
  other = format;
  other.block_bytes = 64;
  EXPECT_THAT(check(what.engine_fingerprint, other, what.owner).second, HasSubstr("block"));
  other = format;
  other.tp_size = 2;
  EXPECT_THAT(check(what.engine_fingerprint, other, what.owner).second, HasSubstr("rank"));
  for (std::string TrunkOwner::*field :
       {&TrunkOwner::tenant, &TrunkOwner::cache_salt, &TrunkOwner::adapter}) {
    TrunkOwner owner = what.owner;
    owner.*field += "x";
    EXPECT_EQ(check(what.engine_fingerprint, format, owner).first, Errc::kUnauthenticated);
  }
}

}  // namespace
}  // namespace thaw::kvsnap
