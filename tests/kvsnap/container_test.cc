// Containers on real files: what is written is read back, what cannot be says why.

#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/crc32c.h"
#include "tests/checkpoint/scratch_folder.h"
#include "tests/kvsnap/container_fixture.h"

namespace thaw::kvsnap {
namespace {

using checkpoint::ScratchFolder;
using testing::HasSubstr;

const std::string kCommit = "0123456789abcdef0123456789abcdef01234567";

/// The regions of the golden files (tests/e2e/thaw_container.py).
std::vector<TestRegion> golden_regions() {
  Bytes ramp(5000);
  for (std::size_t i = 0; i < ramp.size(); ++i)
    ramp[i] = static_cast<std::byte>((i * 7 + i / 256) & 255);
  return {{RegionKind::kWeights, 0, ramp},
          {RegionKind::kWeights, 1, {}},
          {RegionKind::kKvBlock, 7, text_payload(std::string(4096, 'k'))},
          {RegionKind::kMetadata, 0, text_payload("{\"model\":\"golden\"}")}};
}

std::string golden_path(const std::string& name) {
  return std::string(THAW_SOURCE_DIR) + "/tests/data/container/" + name + ".thaw";
}

Bytes file_bytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return text_payload(text);
}

class ContainerIo : public testing::TestWithParam<IoMode> {
 protected:
  FileIo& io() const { return system_io(GetParam()); }
  ScratchFolder folder_;
  ThreadPool threads_{2};
};

INSTANTIATE_TEST_SUITE_P(Modes, ContainerIo, testing::Values(IoMode::kBuffered, IoMode::kDirect),
                         [](const auto& info) {
                           return info.param == IoMode::kDirect ? "Direct" : "Buffered";
                         });

TEST_P(ContainerIo, ReadsBackWhatWasWritten) {
  std::vector<TestRegion> regions;
  std::uint32_t id = 0;
  for (const std::size_t size : {0, 1, 511, 4096, 4097, 12288, 100000, 9000000})
    regions.push_back({RegionKind::kWeights, id++, random_payload(size, id)});
  regions.push_back({RegionKind::kKvBlock, 0, random_payload(8192, 90)});
  const std::string path = folder_ / "a.thaw";
  for (const int threads : {1, 3}) {
    for (const std::size_t chunk : {std::size_t{4096}, std::size_t{12288}, std::size_t{4} << 20}) {
      ContainerWriterOptions options;
      options.num_threads = threads;
      options.chunk_bytes = chunk;
      options.engine_commit = kCommit;
      ASSERT_TRUE(write_regions(io(), path, regions, options));
      const auto read = read_regions(io(), path, threads_);
      ASSERT_TRUE(read) << read.error().message;
      EXPECT_TRUE(*read == regions);
    }
  }
  const auto reader = ContainerReader::open(io(), path);
  ASSERT_TRUE(reader);
  EXPECT_EQ(reader->version(), 2U);
  EXPECT_EQ(reader->engine_commit(), kCommit);
  EXPECT_TRUE(reader->verify(threads_));
  for (const Region& region : reader->regions()) {
    EXPECT_EQ(region.offset % kPayloadAlignment, 0U);
    EXPECT_EQ(
        region.crc32c,
        crc32c(regions[static_cast<std::size_t>(&region - reader->regions().data())].payload));
  }
  EXPECT_EQ(reader->file_bytes(),
            reader->regions().back().offset + reader->regions().back().size_bytes);
  EXPECT_EQ(reader->find(RegionKind::kKvBlock, 0), &reader->regions().back());
  EXPECT_EQ(reader->find(RegionKind::kMetadata, 0), nullptr);
  EXPECT_FALSE(std::filesystem::exists(path + kIncompleteSuffix));
}

TEST_P(ContainerIo, WritesTheGoldenBytes) {
  const std::string path = folder_ / "golden.thaw";
  ContainerWriterOptions options;
  options.engine_commit = kCommit;
  ASSERT_TRUE(write_regions(io(), path, golden_regions(), options));
  EXPECT_TRUE(file_bytes(path) == file_bytes(golden_path("v2")));
}

TEST_P(ContainerIo, ReadsTheGoldenFilesOfBothVersions) {
  // packed: payloads one after another, where they happen to fall; moved: the table at the end.
  for (const char* name : {"v1", "v2", "v2-packed", "v2-moved"}) {
    const auto read = read_regions(io(), golden_path(name), threads_);
    ASSERT_TRUE(read) << read.error().message;
    EXPECT_TRUE(*read == golden_regions()) << name;
    const auto reader = ContainerReader::open(io(), golden_path(name));
    EXPECT_EQ(reader->version(), std::string(name) == "v1" ? 1U : 2U);
    EXPECT_EQ(reader->has_checksums(), std::string(name) != "v1");
    EXPECT_TRUE(reader->verify(threads_));
  }
}

TEST_P(ContainerIo, ADamagedPayloadIsNamed) {
  const std::string path = folder_ / "a.thaw";
  ASSERT_TRUE(write_regions(io(), path, golden_regions()));
  const std::uint64_t at = ContainerReader::open(io(), path)->regions()[2].offset + 4000;
  std::fstream(path, std::ios::binary | std::ios::in | std::ios::out)
      .seekp(static_cast<std::streamoff>(at))
      .put('x');
  const auto reader = ContainerReader::open(io(), path);
  ASSERT_TRUE(reader);
  Bytes out(4096);
  const auto read = reader->read(reader->regions()[2], out, threads_);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Errc::kDataLoss);
  EXPECT_THAT(read.error().message, HasSubstr(path + ": kv_live_block 7 is damaged"));
  EXPECT_THAT(reader->verify(threads_).error().message, HasSubstr("kv_live_block 7 is damaged"));
  EXPECT_TRUE(reader->read(reader->regions()[2], out, threads_, Verify::kNothing));
  Bytes first(5000);
  EXPECT_TRUE(reader->read(reader->regions()[0], first, threads_));
}

TEST_P(ContainerIo, FoldersThatAreMissingOrClosedAreNamed) {
  const auto missing = write_regions(io(), folder_ / "none/a.thaw", golden_regions());
  ASSERT_FALSE(missing);
  EXPECT_THAT(missing.error().message, HasSubstr("none/a.thaw.thaw-incomplete"));
  EXPECT_THAT(missing.error().message, HasSubstr("No such file or directory"));
  // A file system where nobody may create anything.
  EXPECT_FALSE(write_regions(io(), "/proc/a.thaw", golden_regions()));
  const auto none = ContainerReader::open(io(), folder_ / "none.thaw");
  ASSERT_FALSE(none);
  EXPECT_EQ(none.error().code, Errc::kNotFound);
  EXPECT_THAT(ContainerReader::open(io(), folder_.path()).error().message,
              HasSubstr("is not a regular file"));
}

TEST_P(ContainerIo, AFullDiskLeavesTheOldFileAndNoPart) {
  const std::string path = folder_ / "a.thaw";
  ASSERT_TRUE(write_regions(io(), path, golden_regions()));
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{100000, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  const auto written = write_regions(
      io(), path, {{RegionKind::kWeights, 0, random_payload(std::size_t{1} << 20, 4)}});
  ::setrlimit(RLIMIT_FSIZE, &before);
  ASSERT_FALSE(written);
  EXPECT_THAT(written.error().message, HasSubstr("a.thaw.thaw-incomplete: File too large"));
  EXPECT_FALSE(std::filesystem::exists(path + kIncompleteSuffix));
  EXPECT_TRUE(*read_regions(io(), path, threads_) == golden_regions());
}

TEST_P(ContainerIo, WhatADeadWriterLeftIsTakenOverAndALiveOneIsNot) {
  const std::string path = folder_ / "a.thaw";
  std::ofstream(path + kIncompleteSuffix) << std::string(50000, 'x');
  ASSERT_TRUE(write_regions(io(), path, golden_regions()));
  EXPECT_TRUE(*read_regions(io(), path, threads_) == golden_regions());

  auto living = ContainerWriter::create(io(), path, {});
  ASSERT_TRUE(living);
  const auto second = write_regions(io(), path, golden_regions());
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::kUnavailable);
  EXPECT_THAT(second.error().message, HasSubstr("is being written by another process"));
  living->reset();
  EXPECT_FALSE(std::filesystem::exists(path + kIncompleteSuffix));
  // A link that somebody put there leads nowhere.
  std::filesystem::create_symlink(folder_ / "victim", path + kIncompleteSuffix);
  EXPECT_FALSE(write_regions(io(), path, golden_regions()));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "victim"));
}

TEST(ContainerWriter, HoldsTheCallerToWhatItAnnounced) {
  CrashIo io;
  ContainerWriterOptions options;
  options.engine_commit = "short";
  EXPECT_THAT(ContainerWriter::create(io, "a.thaw", options).error().message,
              HasSubstr("40 hex digits, not 5"));
  options = {};
  options.num_regions = kMaxRegions + 1;
  EXPECT_FALSE(ContainerWriter::create(io, "a.thaw", options));
  options.num_regions = 1;
  auto writer = ContainerWriter::create(io, "a.thaw", options);
  ASSERT_TRUE(writer);
  EXPECT_THAT((*writer)->commit().error().message, HasSubstr("0 regions of the 1"));
  EXPECT_TRUE((*writer)->add(RegionKind::kWeights, 0, {}));
  EXPECT_THAT((*writer)->add(RegionKind::kWeights, 1, {}).error().message,
              HasSubstr("more regions than the 1"));
  writer->reset();
  EXPECT_TRUE(io.files().empty());
}

}  // namespace
}  // namespace thaw::kvsnap
