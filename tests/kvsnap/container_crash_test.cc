// Power cuts, full disks: whoever opens a container's name finds the old one or the new one.

#include <gtest/gtest.h>

#include "tests/kvsnap/container_fixture.h"

namespace thaw::kvsnap {
namespace {

const std::string kWeightsPath = "folder/weights.thaw";

const std::vector<TestRegion> kOld{{RegionKind::kWeights, 0, random_payload(700, 1)},
                                   {RegionKind::kMetadata, 0, text_payload("{\"is\":\"old\"}")}};
const std::vector<TestRegion> kNew{{RegionKind::kWeights, 0, random_payload(5000, 2)},
                                   {RegionKind::kWeights, 1, random_payload(300, 3)},
                                   {RegionKind::kMetadata, 0, text_payload("{\"is\":\"new\"}")}};

ContainerWriterOptions one_thread() {
  ContainerWriterOptions options;
  options.num_threads = 1;
  options.chunk_bytes = 4096;
  return options;
}

class ContainerCrash : public testing::TestWithParam<bool> {
 protected:
  bool has_old() const { return GetParam(); }

  Files before() const {
    if (!has_old()) return {};
    CrashIo io;
    EXPECT_TRUE(write_regions(io, kWeightsPath, kOld));
    return {{kWeightsPath, io.files().at(kWeightsPath)}};
  }

  enum class Found { kNone, kOld, kNew, kTorn };
  Found find(Files files) {
    CrashIo io(std::move(files));
    const auto regions = read_regions(io, kWeightsPath, threads_);
    if (!regions) return regions.error().code == Errc::kNotFound ? Found::kNone : Found::kTorn;
    if (*regions == kNew) return Found::kNew;
    return has_old() && *regions == kOld ? Found::kOld : Found::kTorn;
  }
  Found kept() const { return has_old() ? Found::kOld : Found::kNone; }

  ThreadPool threads_{1};
};

TEST_P(ContainerCrash, TornAtEveryByteItIsTheOldOne) {
  CrashIo io(before());
  ASSERT_TRUE(write_regions(io, kWeightsPath, kNew, one_thread()));
  std::size_t torn = 0;
  for (std::size_t call = 0; call < io.num_calls(); ++call) {
    for (std::size_t byte = 1; byte < io.written_by(call); ++byte, ++torn) {
      const Survival::Kind kind =
          byte % 2 == 0 ? Survival::Kind::kNothing : Survival::Kind::kEverything;
      ASSERT_EQ(find(io.after_crash(call, byte, {kind})), kept())
          << "call " << call << ", byte " << byte;
    }
  }
  EXPECT_GT(torn, 13000U);  // header and table, 5,312 bytes of payload
}

TEST_P(ContainerCrash, BetweenAnyTwoCallsItIsTheOldOrTheNewOne) {
  CrashIo io(before());
  ASSERT_TRUE(write_regions(io, kWeightsPath, kNew, one_thread()));
  int news = 0;
  for (std::size_t call = 0; call <= io.num_calls(); ++call) {
    for (unsigned seed = 0; seed < 50; ++seed) {
      const Survival survival{seed == 0   ? Survival::Kind::kNothing
                              : seed == 1 ? Survival::Kind::kEverything
                                          : Survival::Kind::kRandom,
                              seed};
      const Found found = find(io.after_crash(call, 0, survival));
      ASSERT_TRUE(found == kept() || found == Found::kNew) << "call " << call << ", seed " << seed;
      if (call == io.num_calls()) {
        ASSERT_EQ(found, Found::kNew) << "it was said to be written";
      }
      news += found == Found::kNew ? 1 : 0;
    }
  }
  EXPECT_GT(news, 50);  // a rename that was not synced yet may have survived
}

// Threads write chunks in any order; what is safe does not depend on it.
TEST_P(ContainerCrash, WithSeveralThreadsItIsTheOldOrTheNewOneToo) {
  ContainerWriterOptions options = one_thread();
  options.num_threads = 3;
  CrashIo io(before());
  ASSERT_TRUE(write_regions(io, kWeightsPath, kNew, options));
  for (std::size_t call = 0; call <= io.num_calls(); ++call) {
    for (unsigned seed = 0; seed < 30; ++seed) {
      const std::size_t written = call < io.num_calls() ? io.written_by(call) : 0;
      const std::size_t torn = written == 0 ? 0 : seed * written / 30;
      const Found found = find(io.after_crash(call, torn, {Survival::Kind::kRandom, seed}));
      ASSERT_TRUE(found == kept() || found == Found::kNew) << "call " << call << ", seed " << seed;
    }
  }
}

// Its second shard is written before the first is renamed, and the first, which names the others,
// is renamed last: so who finds the new first one finds the new second one.
TEST_P(ContainerCrash, TheFirstOfTwoShardsIsNeverNewerThanTheSecond) {
  const std::string second_path = "folder/weights.rank1.thaw";
  const auto write_both = [&](CrashIo& io, const std::vector<TestRegion>& regions) {
    ContainerWriterOptions options = one_thread();
    options.num_regions = regions.size();
    auto first = ContainerWriter::create(io, kWeightsPath, options);
    auto second = ContainerWriter::create(io, second_path, options);
    ASSERT_TRUE(first && second);
    for (const TestRegion& region : regions) {
      ASSERT_TRUE((*first)->add(region.kind, region.logical_id, {region.payload}));
      ASSERT_TRUE((*second)->add(region.kind, region.logical_id, {region.payload}));
    }
    ASSERT_TRUE((*second)->commit());
    ASSERT_TRUE((*first)->commit());
  };
  CrashIo old_io;
  if (has_old()) write_both(old_io, kOld);
  CrashIo io(old_io.files());
  write_both(io, kNew);
  for (std::size_t call = 0; call <= io.num_calls(); ++call) {
    for (unsigned seed = 0; seed < 20; ++seed) {
      const Files files = io.after_crash(call, 0, {Survival::Kind::kRandom, seed});
      if (find(files) != Found::kNew) continue;
      CrashIo after(files);
      const auto second = read_regions(after, second_path, threads_);
      ASSERT_TRUE(second && *second == kNew) << "call " << call << ", seed " << seed;
    }
  }
}

// The file system of these tests sees what is not synced.
TEST_P(ContainerCrash, WithoutSyncsItWouldBeTorn) {
  CrashIo io(before());
  io.ignore_syncs();
  ASSERT_TRUE(write_regions(io, kWeightsPath, kNew, one_thread()));
  bool torn = false;
  for (unsigned seed = 0; seed < 200 && !torn; ++seed)
    torn = find(io.after_crash(io.num_calls(), 0, {Survival::Kind::kRandom, seed})) == Found::kTorn;
  EXPECT_TRUE(torn);
}

TEST_P(ContainerCrash, ADiskThatIsFullAtAnyCallLeavesTheOldOneAndNoPart) {
  const Files files = before();
  CrashIo whole(files);
  ASSERT_TRUE(write_regions(whole, kWeightsPath, kNew, one_thread()));
  const std::size_t last = whole.num_calls() - 1;  // syncs the directory
  for (std::size_t call = 0; call < last; ++call) {
    CrashIo io(files);
    io.fail_from(call);
    const auto written = write_regions(io, kWeightsPath, kNew, one_thread());
    ASSERT_FALSE(written) << call;
    EXPECT_EQ(written.error().code, Errc::kResourceExhausted);
    EXPECT_NE(written.error().message.find("no space left"), std::string::npos);
    EXPECT_EQ(io.files(), files) << call;
  }
  CrashIo io(files);
  io.fail_from(last);
  EXPECT_FALSE(write_regions(io, kWeightsPath, kNew, one_thread()));
  EXPECT_EQ(find(io.files()), Found::kNew);
}

INSTANTIATE_TEST_SUITE_P(Files, ContainerCrash, testing::Bool(), [](const auto& info) {
  return info.param ? "OverAnOldOne" : "WhereNoneWas";
});

}  // namespace
}  // namespace thaw::kvsnap
