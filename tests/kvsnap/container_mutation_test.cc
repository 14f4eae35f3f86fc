// Damaged containers are refused with a reason, or what they hold is read as it was written.

#include <cstring>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/kvsnap/container_fixture.h"

namespace thaw::kvsnap {
namespace {

using testing::HasSubstr;

constexpr std::size_t kTable = kContainerHeaderBytes;

const std::vector<TestRegion> kRegions{
    {RegionKind::kWeights, 0, random_payload(6000, 1)},
    {RegionKind::kWeights, 1, random_payload(64, 2)},
    {RegionKind::kKvBlock, 0, random_payload(4096, 3)},
    {RegionKind::kMetadata, 0, text_payload("{\"model\":\"small\"}")}};

Bytes whole_file() {
  CrashIo io;
  EXPECT_TRUE(write_regions(io, "a.thaw", kRegions));
  return io.files().at("a.thaw");
}

template <typename T>
void put(Bytes& file, std::size_t offset, T value) {
  std::memcpy(file.data() + offset, &value, sizeof(value));
}

class ContainerMutation : public testing::Test {
 protected:
  Result<std::vector<TestRegion>> read(Bytes file) {
    CrashIo io({{"a.thaw", std::move(file)}});
    return read_regions(io, "a.thaw", threads_);
  }
  std::string reason(Bytes file) {
    const auto regions = read(std::move(file));
    return regions ? "" : regions.error().message;
  }
  ThreadPool threads_{1};
  const Bytes whole_ = whole_file();
};

TEST_F(ContainerMutation, TenThousandAreRefusedOrIntact) {
  std::mt19937_64 random(20);
  int refused = 0;
  for (int i = 0; i < 10000; ++i) {
    Bytes file = whole_;
    // Half of the damage goes where it says most: header fields and table.
    const auto place = [&]() -> std::size_t {
      if (random() % 2 == 0) return random() % file.size();
      return random() % 2 == 0 ? random() % 64 : kTable + random() % (4 * kRegionEntryBytes);
    };
    const std::size_t where = place();
    switch (i % 5) {
      case 0:  // one bit
        file[where] ^= static_cast<std::byte>(1U << random() % 8);
        break;
      case 1:  // some bytes
        for (std::size_t at = where; at < std::min(file.size(), where + 1 + random() % 64); ++at)
          file[at] = static_cast<std::byte>(random());
        break;
      case 2:  // cut, or with something behind
        file.resize(random() % 4 == 0 ? file.size() + random() % 5000 : random() % file.size());
        break;
      case 3: {  // a lying count, size or offset
        const std::size_t entry = kTable + random() % 4 * kRegionEntryBytes;
        const std::size_t fields[] = {8, 16, entry + 8, entry + 16};
        const std::uint64_t values[] = {
            0, 1, 4095, 4096, file.size(), ~0ULL, ~0ULL << 12, random(), random() % 65536};
        put(file, fields[random() % 4], values[random() % 9]);
        break;
      }
      default:  // another version or kind, a shifted part
        if (random() % 2 == 0) {
          put(file, random() % 2 == 0 ? 4 : kTable, static_cast<std::uint32_t>(random() % 4));
        } else {
          std::rotate(file.begin() + static_cast<std::ptrdiff_t>(where),
                      file.begin() + static_cast<std::ptrdiff_t>(where + (file.size() - where) / 2),
                      file.end());
        }
    }
    const auto regions = read(file);
    if (!regions) {
      ASSERT_THAT(regions.error().message, HasSubstr("a.thaw: ")) << i;
      ++refused;
      continue;
    }
    // A region may be called something else or be left out by the count; its bytes are its own.
    for (const TestRegion& region : *regions) {
      ASSERT_TRUE(std::ranges::any_of(kRegions, [&](const TestRegion& known) {
        return known.payload == region.payload || region.payload.empty();
      })) << i;
    }
  }
  EXPECT_GT(refused, 6000);
}

TEST_F(ContainerMutation, EveryReasonIsGiven) {
  const auto changed = [&](std::size_t offset, auto value) {
    Bytes file = whole_;
    put(file, offset, value);
    return reason(file);
  };
  EXPECT_THAT(changed(0, 'X'), HasSubstr("not a thaw container"));
  EXPECT_THAT(reason({}), HasSubstr("not a thaw container"));
  EXPECT_THAT(reason(Bytes(whole_.begin(), whole_.begin() + 100)), HasSubstr("has 100 bytes"));
  EXPECT_THAT(changed(4, 3U), HasSubstr("version 3; supported are 1 and 2"));
  EXPECT_THAT(changed(4, 1U), HasSubstr("which version 1 does not know"));
  EXPECT_THAT(changed(8, ~0ULL), HasSubstr("at most 1048576"));
  EXPECT_THAT(changed(8, 1000ULL), HasSubstr("its table should have 32000 bytes at byte 4096"));
  EXPECT_THAT(changed(16, 64ULL), HasSubstr("its table should have 128 bytes at byte 64"));
  EXPECT_THAT(changed(24, '\1'), HasSubstr("commit is no text"));
  EXPECT_THAT(changed(kTable, 9U), HasSubstr("region 0 is of kind 9"));
  EXPECT_THAT(changed(kTable + 36, 0U), HasSubstr("(weights 0) occurs twice"));
  EXPECT_THAT(changed(kTable + 8, ~0ULL), HasSubstr("it is truncated, or its table is damaged"));
  EXPECT_THAT(changed(kTable + 16, ~0ULL), HasSubstr("it is truncated, or its table is damaged"));
  EXPECT_THAT(changed(kTable + 16, 100ULL), HasSubstr("lies over what comes before it"));
  EXPECT_THAT(changed(kTable + 16, 4096ULL), HasSubstr("lies over what comes before it"));
  EXPECT_THAT(changed(kTable + 48, 8192ULL), HasSubstr("lies over what comes before it"));
  EXPECT_THAT(changed(kTable + 24, 0U), HasSubstr("THAW_VERIFY=0"));
  EXPECT_THAT(changed(kTable + 24, 1U), HasSubstr("weights 0 is damaged"));
  EXPECT_THAT(changed(8192, '!'), HasSubstr("weights 0 is damaged"));
}

}  // namespace
}  // namespace thaw::kvsnap
