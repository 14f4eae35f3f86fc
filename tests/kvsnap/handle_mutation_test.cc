// Damaged handle directories, and power cuts while one is written.

#include <algorithm>
#include <cstring>
#include <random>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kvsnap/container_fixture.h"
#include "tests/kvsnap/handle_fixture.h"

namespace thaw::kvsnap {
namespace {

using testing::HasSubstr;

const char* const kForms[] = {"trunk",     "planner", "slabs", "old-form",
                              "described", "empty",   "ranks"};

/// The payloads of a handle's files, where they are whole.
Result<std::vector<TestRegion>> payloads(FileIo& io, ThreadPool& threads) {
  std::vector<TestRegion> all;
  for (const char* name : {"kv.thawkv", "kv.rank1.thawkv", "weights.thaw", "weights.rank1.thaw"}) {
    auto regions = read_regions(io, std::string("h/") + name, threads);
    if (!regions && regions.error().code == Errc::kNotFound) continue;
    if (!regions) return std::move(regions).error();
    all.insert(all.end(), regions->begin(), regions->end());
  }
  return all;
}

/// What the description says must hold for the blocks that follow it.
void check_opened(const HandleDirectory& opened) {
  if (!opened.kv() || opened.kv()->num_blocks == 0) return;
  const KvDescription& kv = *opened.kv();
  ASSERT_EQ(kv.block_ids.size(), kv.num_blocks);
  ASSERT_EQ(kv.block_hashes.size(), kv.num_blocks);
  ASSERT_EQ(opened.handle().num_kv_blocks, kv.num_blocks);
  ASSERT_EQ(opened.handle().num_layers, kv.num_layers);
  if (opened.kv_bytes() > 0) {
    ASSERT_LE(kv.payload_bytes(), opened.kv_bytes());
  }
}

TEST(HandleMutation, TenThousandAreRefusedOrIntact) {
  std::mt19937_64 random(6);
  ThreadPool threads(1);
  int refused = 0;
  for (int i = 0; i < 10000; ++i) {
    const std::string form = kForms[random() % std::size(kForms)];
    Files files = golden_files(form, "h");
    auto chosen = files.begin();
    std::advance(chosen, static_cast<std::ptrdiff_t>(random() % files.size()));
    Bytes& file = chosen->second;
    const bool is_container = file.size() > kContainerHeaderBytes;
    // Of a container most damage goes where it says most.
    const std::size_t where = is_container && random() % 2 == 0
                                  ? random() % 64 + random() % 2 * 4096
                                  : random() % file.size();
    switch (i % 5) {
      case 0:
        file[where] ^= static_cast<std::byte>(1U << random() % 8);
        break;
      case 1:
        for (std::size_t at = where; at < std::min(file.size(), where + 1 + random() % 16); ++at)
          file[at] = static_cast<std::byte>(random());
        break;
      case 2:
        file.resize(random() % 4 == 0 ? file.size() + 1 + random() % 5000 : random() % file.size());
        break;
      case 3: {  // a lying length, or a digit that became another
        if (!is_container && random() % 2 == 0) {
          const std::uint32_t values[] = {0, 1, ~0U, static_cast<std::uint32_t>(random())};
          if (file.size() >= 12) std::memcpy(file.data() + 8, &values[random() % 4], 4);
          break;
        }
        for (std::size_t at = where; at < file.size(); ++at) {
          const char c = static_cast<char>(file[at]);
          if (c < '0' || c > '9') continue;
          file[at] = static_cast<std::byte>('0' + random() % 10);
          break;
        }
        break;
      }
      default: {  // a file of another handle, or none
        if (random() % 3 == 0) {
          files.erase(chosen);
          break;
        }
        Files others = golden_files(kForms[random() % std::size(kForms)], "h");
        if (const auto other = others.find(chosen->first); other != others.end())
          file = other->second;
      }
    }
    CrashIo whole(golden_files(form, "h"));
    CrashIo io(std::move(files));
    const auto opened = HandleDirectory::open(io, "h");
    if (!opened) {
      ASSERT_THAT(opened.error().message, HasSubstr("h")) << form << " " << i;
      ++refused;
      continue;
    }
    check_opened(*opened);
    const auto verified = opened->verify(threads);
    if (!verified) {
      ASSERT_FALSE(verified.error().message.empty());
      ++refused;
      continue;
    }
    // Version 1 and the old form cannot tell; a file of another handle is whole, but another one.
    if (form == "old-form" || form == "empty" || form == "ranks" || i % 5 == 4) continue;
    const auto found = payloads(io, threads);
    const auto right = payloads(whole, threads);
    ASSERT_TRUE(found && right) << form << " " << i;
    for (const TestRegion& region : *found) {
      ASSERT_TRUE(std::ranges::any_of(*right,
                                      [&](const TestRegion& known) {
                                        return known.payload == region.payload ||
                                               region.payload.empty();
                                      }))
          << form << " " << i;
    }
  }
  EXPECT_GT(refused, 4000);
}

/// Copies the golden trunk, which lies in `from`, to `h`.
Result<void> save_golden(CrashIo& io) {
  auto source = HandleDirectory::open(io, "from");
  if (!source) return std::move(source).error();
  return source->save("h", source->handle(), true);
}

bool is_whole(Files files) {
  CrashIo io(std::move(files));
  ThreadPool threads(1);
  const auto opened = HandleDirectory::open(io, "h");
  return opened && opened->verify(threads) && opened->files().size() == 3;
}

bool is_no_handle(Files files) {
  CrashIo io(std::move(files));
  const auto opened = HandleDirectory::open(io, "h");
  return !opened && opened.error().code == Errc::kNotFound;
}

TEST(HandleCrash, PowerCutsLeaveAWholeHandleOrNone) {
  CrashIo io(golden_files("trunk", "from"));
  ASSERT_TRUE(save_golden(io));
  int whole = 0;
  for (std::size_t call = 0; call <= io.num_calls(); ++call) {
    for (unsigned seed = 0; seed < 30; ++seed) {
      const Survival survival{seed == 0   ? Survival::Kind::kNothing
                              : seed == 1 ? Survival::Kind::kEverything
                                          : Survival::Kind::kRandom,
                              seed};
      const Files files = io.after_crash(call, 0, survival);
      if (is_whole(files)) {
        ++whole;
        continue;
      }
      ASSERT_TRUE(is_no_handle(files)) << "call " << call << ", seed " << seed;
      ASSERT_LT(call, io.num_calls()) << "it was said to be written";
    }
  }
  EXPECT_GE(whole, 30);
}

TEST(HandleCrash, WithoutSyncsItWouldBeTorn) {
  CrashIo io(golden_files("trunk", "from"));
  io.ignore_syncs();
  ASSERT_TRUE(save_golden(io));
  bool torn = false;
  for (unsigned seed = 0; seed < 200 && !torn; ++seed) {
    const Files files = io.after_crash(io.num_calls(), 0, {Survival::Kind::kRandom, seed});
    torn = !is_whole(files) && !is_no_handle(files);
  }
  EXPECT_TRUE(torn);
}

TEST(HandleCrash, TornAtEveryByteThereIsNoHandle) {
  CrashIo io(golden_files("trunk", "from"));
  ASSERT_TRUE(save_golden(io));
  for (std::size_t call = 0; call < io.num_calls(); ++call) {
    for (std::size_t byte = 1; byte < io.written_by(call); byte += byte < 700 ? 1 : 61)
      ASSERT_TRUE(is_no_handle(io.after_crash(call, byte, {Survival::Kind::kEverything})))
          << "call " << call << ", byte " << byte;
  }
}

TEST(HandleCrash, AFullDiskLeavesNothing) {
  const Files before = golden_files("trunk", "from");
  CrashIo whole(before);
  ASSERT_TRUE(save_golden(whole));
  for (std::size_t call = 0; call < whole.num_calls(); ++call) {
    CrashIo io(before);
    io.fail_from(call);
    const auto saved = save_golden(io);
    ASSERT_FALSE(saved) << call;
    EXPECT_EQ(saved.error().code, Errc::kResourceExhausted);
    EXPECT_TRUE(io.files() == before) << call;
  }
}

}  // namespace
}  // namespace thaw::kvsnap
