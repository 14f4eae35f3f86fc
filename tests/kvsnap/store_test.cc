// Stores and local copies of their objects, without a network: what a fetch leaves, whatever
// breaks.

#include "kvsnap/store/store.h"

#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "engine/base/unique_fd.h"
#include "kvsnap/store/file_store.h"
#include "kvsnap/store/object_cache.h"
#include "kvsnap/store/s3_url.h"
#include "kvsnap/store/store_io.h"
#include "tests/checkpoint/scratch_folder.h"
#include "tests/kvsnap/container_fixture.h"

namespace thaw::kvsnap {
namespace {

using checkpoint::ScratchFolder;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::UnorderedElementsAre;

Bytes bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return text_payload(text);
}

void write_file(const std::string& path, const Bytes& bytes) {
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(bytes.data()),
             static_cast<std::streamsize>(bytes.size()));
}

/// Names of all files below a folder, without directories.
std::vector<std::string> names_below(const std::string& folder) {
  std::vector<std::string> names;
  if (!std::filesystem::exists(folder)) return names;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) names.push_back(entry.path().filename().string());
  return names;
}

/// A store in memory that can break off.
class MemoryStore final : public Store {
 public:
  struct Held {
    Bytes bytes;
    std::string version;
  };
  std::map<std::string, Held> objects;
  std::size_t break_after = SIZE_MAX;  ///< bytes of a stream
  Errc break_code = Errc::kUnavailable;
  std::size_t lost_bytes = 0;  ///< at the end of a stream, without an error
  std::vector<std::uint64_t> starts;  ///< of all streams

  std::string name() const override { return "memory"; }
  Result<std::unique_ptr<StoredObject>> open(const std::string& url) override {
    const auto found = objects.find(url);
    if (found == objects.end()) return make_error(Errc::kNotFound, url + ": no such object");
    const ObjectInfo info{url, found->second.bytes.size(), found->second.version};
    return std::unique_ptr<StoredObject>(
        std::make_unique<Object>(info, found->second.bytes, *this));
  }
  Result<ObjectInfo> put(const std::string& url, const std::string& path) override {
    if (break_after == 0) return make_error(break_code, url + ": the test broke it off");
    objects[url] = {bytes_of(path), "put"};
    return ObjectInfo{url, objects[url].bytes.size(), "put"};
  }
  Result<std::vector<ListedObject>> list(const std::string&, std::size_t) override {
    return make_error(Errc::kUnsupported, "not of this test");
  }
  Result<void> remove(const std::string&) override {
    return make_error(Errc::kUnsupported, "not of this test");
  }
  std::unique_ptr<Store> share() override { return std::make_unique<MemoryStore>(); }
  void stop() override {}

 private:
  class Object final : public StoredObject {
   public:
    Object(ObjectInfo info, Bytes bytes, MemoryStore& store)
        : StoredObject(std::move(info)), bytes_(std::move(bytes)), store_(&store) {}
    Result<void> stream(std::uint64_t offset, std::uint64_t size,
                        const ByteSink& sink) const override {
      store_->starts.push_back(offset);
      const std::uint64_t end = offset + size - store_->lost_bytes;
      std::size_t brought = 0;
      while (offset < end) {
        if (brought >= store_->break_after)
          return make_error(store_->break_code, info().url + ": the test broke it off");
        const std::uint64_t next = std::min<std::uint64_t>(1000, end - offset);
        const auto part = std::span(bytes_).subspan(static_cast<std::size_t>(offset),
                                                    static_cast<std::size_t>(next));
        if (auto taken = sink(part); !taken) return taken;
        offset += next;
        brought += static_cast<std::size_t>(next);
      }
      return {};
    }

   private:
    Bytes bytes_;
    MemoryStore* store_;
  };
};

const std::string kUrl = "s3://bucket/models/weights.thaw";

class Cache : public testing::Test {
 protected:
  void SetUp() override { store_.objects[kUrl] = {random_payload(10000, 1), "v1"}; }

  Bytes fetched() {
    const auto path = cache_.fetch(store_, kUrl);
    EXPECT_TRUE(path) << path.error().message;
    return path ? bytes_of(*path) : Bytes();
  }
  Error refusal() {
    const auto path = cache_.fetch(store_, kUrl);
    EXPECT_FALSE(path);
    return path ? Error() : path.error();
  }

  ScratchFolder folder_;
  std::string directory_ = folder_ / "snapshots";
  ObjectCache cache_{directory_};
  MemoryStore store_;
};

TEST_F(Cache, FetchesOnceAndAgainWhenTheObjectIsAnother) {
  EXPECT_EQ(fetched(), store_.objects[kUrl].bytes);
  EXPECT_EQ(fetched(), store_.objects[kUrl].bytes);
  EXPECT_THAT(store_.starts, ElementsAre(0));
  // Of the same size, which only the version tells.
  store_.objects[kUrl] = {random_payload(10000, 2), "v2"};
  EXPECT_EQ(fetched(), store_.objects[kUrl].bytes);
  EXPECT_THAT(store_.starts, ElementsAre(0, 0));
  EXPECT_THAT(names_below(directory_),
              UnorderedElementsAre("weights.thaw", "weights.thaw.version"));
}

TEST_F(Cache, ShardsLieBesideEachOtherAndFoldersApart) {
  store_.objects["s3://bucket/models/weights.rank1.thaw"] = {random_payload(10, 3), "v1"};
  store_.objects["s3://bucket/other/weights.thaw"] = {random_payload(10, 4), "v1"};
  const std::string first = cache_.fetch(store_, kUrl).value();
  const std::string shard = cache_.fetch(store_, "s3://bucket/models/weights.rank1.thaw").value();
  const std::string other = cache_.fetch(store_, "s3://bucket/other/weights.thaw").value();
  const auto folder = [](const std::string& path) {
    return std::filesystem::path(path).parent_path();
  };
  EXPECT_EQ(folder(first), folder(shard));
  EXPECT_NE(folder(first), folder(other));
  EXPECT_THAT(shard, testing::EndsWith("/weights.rank1.thaw"));
}

TEST_F(Cache, GoesOnWhereItBrokeOff) {
  store_.break_after = 4000;
  EXPECT_EQ(refusal().code, Errc::kUnavailable);
  EXPECT_THAT(names_below(directory_), ElementsAre(HasSubstr(".partial")));
  store_.break_after = SIZE_MAX;
  EXPECT_EQ(fetched(), store_.objects[kUrl].bytes);
  EXPECT_THAT(store_.starts, ElementsAre(0, 4000));
  EXPECT_THAT(names_below(directory_),
              UnorderedElementsAre("weights.thaw", "weights.thaw.version"));
}

TEST_F(Cache, ABrokenFetchOfAnotherVersionIsNotGoneOnWith) {
  store_.break_after = 4000;
  static_cast<void>(refusal());
  store_.break_after = SIZE_MAX;
  store_.objects[kUrl] = {random_payload(10000, 2), "v2"};
  EXPECT_EQ(fetched(), store_.objects[kUrl].bytes);
  EXPECT_THAT(store_.starts, ElementsAre(0, 0));
  EXPECT_THAT(names_below(directory_),
              UnorderedElementsAre("weights.thaw", "weights.thaw.version"));
}

TEST_F(Cache, AFetchBrokenAtAnyByteLeavesTheOldCopyOrNone) {
  const Bytes old = fetched();
  const std::string path = cache_.path_of(store_, kUrl).value();
  store_.objects[kUrl] = {random_payload(10000, 2), "v2"};
  for (std::size_t at = 0; at < 10000; at += 1000) {
    store_.break_after = at;
    static_cast<void>(refusal());
    EXPECT_EQ(bytes_of(path), old);
    // Nothing but a whole copy of what is there now is ever handed out.
    for (const auto& entry : std::filesystem::recursive_directory_iterator(directory_))
      if (entry.path().string().ends_with(".partial")) std::filesystem::remove(entry.path());
  }
}

TEST_F(Cache, BytesThatAreNotRightAreNotKept) {
  store_.break_after = 4000;
  store_.break_code = Errc::kDataLoss;  // the object was replaced: who knows which bytes came
  EXPECT_EQ(refusal().code, Errc::kDataLoss);
  EXPECT_THAT(names_below(directory_), IsEmpty());
  store_.break_after = SIZE_MAX;
  store_.lost_bytes = 1;
  const Error short_one = refusal();
  EXPECT_EQ(short_one.code, Errc::kDataLoss);
  EXPECT_THAT(short_one.message, HasSubstr("9999 bytes came of 10000"));
  EXPECT_THAT(names_below(directory_), IsEmpty());
}

TEST_F(Cache, ADamagedCopyIsFetchedAnew) {
  static_cast<void>(fetched());
  const std::string path = cache_.path_of(store_, kUrl).value();
  std::filesystem::resize_file(path, 9999);
  EXPECT_EQ(fetched(), store_.objects[kUrl].bytes);
  // Another file under the name, of the right size: its inode is not the stamp's.
  std::filesystem::rename(path, path + ".aside");
  write_file(path, random_payload(10000, 7));
  EXPECT_EQ(fetched(), store_.objects[kUrl].bytes);
  std::filesystem::remove(path + ".version");
  EXPECT_EQ(fetched(), store_.objects[kUrl].bytes);
}

TEST_F(Cache, TwoAtOnceDoNotWriteIntoOneFile) {
  store_.break_after = 4000;
  static_cast<void>(refusal());
  store_.break_after = SIZE_MAX;
  std::string partial;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(directory_))
    if (entry.is_regular_file()) partial = entry.path().string();
  const UniqueFd other(::open(partial.c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_EQ(::flock(other.get(), LOCK_EX | LOCK_NB), 0);
  EXPECT_EQ(fetched(), store_.objects[kUrl].bytes);
  EXPECT_THAT(store_.starts, ElementsAre(0, 0));
  EXPECT_TRUE(std::filesystem::exists(partial)) << "it is the other's";
}

TEST_F(Cache, AFullDiskLeavesNothing) {
  store_.objects[kUrl] = {random_payload(300000, 5), "v1"};
  const auto ignored = std::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  const rlimit small{100000, before.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  const auto path = cache_.fetch(store_, kUrl);
  ::setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, ignored);
  ASSERT_FALSE(path);
  EXPECT_THAT(path.error().message, HasSubstr("weights.thaw"));
  EXPECT_THAT(names_below(directory_), IsEmpty());
}

TEST_F(Cache, AFolderThatMayNotBeWrittenIsNamed) {
  write_file(directory_, {});
  const Error error = refusal();
  EXPECT_EQ(error.code, Errc::kIo);
  EXPECT_THAT(error.message, HasSubstr(directory_));
}

TEST_F(Cache, NamesThatAreNoFileNamesAreRefused) {
  for (const std::string& url :
       {std::string("s3://bucket/a/"), std::string("s3://bucket/.."), std::string("s3://bucket/."),
        "s3://bucket/" + std::string(201, 'a'), std::string("s3://bucket/a\0b", 15)}) {
    store_.objects[url] = {random_payload(10, 1), "v1"};
    const auto path = cache_.fetch(store_, url);
    ASSERT_FALSE(path) << url;
    EXPECT_EQ(path.error().code, Errc::kInvalidArgument);
  }
}

TEST_F(Cache, CopiesThatWereNotUsedForLongestMakeRoom) {
  const auto url = [](const std::string& name) { return "s3://bucket/" + name + "/w.thaw"; };
  const auto age = [&](const std::string& path, std::int64_t seconds) {
    const timespec then{std::time(nullptr) - seconds, 0};
    const timespec times[2] = {then, then};
    ASSERT_EQ(::utimensat(AT_FDCWD, (path + ".version").c_str(), times, 0), 0);
  };
  const auto fetch = [&](const std::string& name, std::uint64_t max_bytes) {
    ObjectCache cache(directory_, max_bytes);  // of a process of its own
    const auto path = cache.fetch(store_, url(name));
    EXPECT_TRUE(path) << path.error().message;
    return path ? *path : "";
  };
  for (const char* name : {"a", "b", "c", "d"})
    store_.objects[url(name)] = {random_payload(1 << 20, 1), "v1"};
  constexpr std::uint64_t kTwo = 5 << 19;  // two and a half
  const std::string a = fetch("a", kTwo);
  const std::string b = fetch("b", kTwo);
  age(a, 2000);
  age(b, 1000);
  EXPECT_EQ(fetch("a", kTwo), a) << "now b is the one that was not used for longest";
  age(a, 500);
  const std::string c = fetch("c", kTwo);
  EXPECT_TRUE(std::filesystem::exists(a));
  EXPECT_FALSE(std::filesystem::exists(b));
  EXPECT_FALSE(std::filesystem::exists(b + ".version"));
  // What was used a moment ago may be about to be opened.
  age(a, 1);
  age(c, 1);
  const std::string d = fetch("d", kTwo);
  EXPECT_TRUE(std::filesystem::exists(a) && std::filesystem::exists(c));
  // The next use makes up for it. A copy that is open goes on to be read.
  age(a, 700);
  age(c, 600);
  std::ifstream open(a, std::ios::binary);
  EXPECT_EQ(fetch("d", kTwo), d);
  EXPECT_FALSE(std::filesystem::exists(a));
  EXPECT_TRUE(std::filesystem::exists(c));
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(open), {}).size(), 1U << 20);
  // One that is larger than the budget is fetched all the same; without a budget nothing goes.
  age(c, 600);
  age(d, 600);
  EXPECT_EQ(fetch("a", 0), a);
  EXPECT_TRUE(std::filesystem::exists(c) && std::filesystem::exists(d));
  age(a, 600);
  EXPECT_EQ(fetch("b", 1000), b);
  EXPECT_THAT(names_below(directory_), UnorderedElementsAre("w.thaw", "w.thaw.version"));
}

TEST_F(Cache, ABudgetKeepsShardsTogetherAndClearsWhatBrokeOff) {
  ObjectCache cache(directory_, 1000);
  store_.objects["s3://bucket/models/weights.rank1.thaw"] = {random_payload(9000, 3), "v1"};
  const std::string first = cache.fetch(store_, kUrl).value();
  const timespec then{std::time(nullptr) - 5000, 0};
  const timespec times[2] = {then, then};
  ASSERT_EQ(::utimensat(AT_FDCWD, (first + ".version").c_str(), times, 0), 0);
  ASSERT_TRUE(cache.fetch(store_, "s3://bucket/models/weights.rank1.thaw"));
  EXPECT_TRUE(std::filesystem::exists(first)) << "it was given out";

  const std::string partial = first + ".0123456789abcdef.partial";
  write_file(partial, random_payload(100, 1));
  ASSERT_EQ(::utimensat(AT_FDCWD, partial.c_str(), times, 0), 0);
  {
    const UniqueFd other(::open(partial.c_str(), O_RDWR | O_CLOEXEC));
    ASSERT_EQ(::flock(other.get(), LOCK_EX | LOCK_NB), 0);
    ASSERT_TRUE(cache.fetch(store_, kUrl));
    EXPECT_TRUE(std::filesystem::exists(partial)) << "somebody fills it";
  }
  ASSERT_TRUE(cache.fetch(store_, kUrl));
  EXPECT_FALSE(std::filesystem::exists(partial));
}

TEST_F(Cache, AnEmptyObjectIsAnEmptyFile) {
  store_.objects[kUrl] = {{}, "v1"};
  EXPECT_THAT(fetched(), IsEmpty());
}

class StoreFiles : public testing::Test {
 protected:
  const std::vector<TestRegion> regions_{
      {RegionKind::kWeights, 0, random_payload(5000, 1)},
      {RegionKind::kMetadata, 0, text_payload("{\"is\":\"here\"}")}};
  ScratchFolder folder_;
  MemoryStore store_;
  StoreIo io_{store_, folder_ / "uploads"};
  ThreadPool threads_{2};
};

TEST_F(StoreFiles, AContainerIsWrittenToAStoreAndReadFromIt) {
  ASSERT_TRUE(write_regions(io_, kUrl, regions_));
  EXPECT_EQ(store_.objects.size(), 1U);
  EXPECT_THAT(names_below(folder_ / "uploads"), IsEmpty());
  EXPECT_EQ(read_regions(io_, kUrl, threads_).value(), regions_);
  // The same bytes as of a file.
  const std::string path = folder_ / "a.thaw";
  ASSERT_TRUE(write_regions(system_io(IoMode::kBuffered), path, regions_));
  EXPECT_EQ(store_.objects[kUrl].bytes, bytes_of(path));
}

TEST_F(StoreFiles, AnUploadThatFailsLeavesTheOldObjectAndNoFile) {
  store_.objects[kUrl] = {random_payload(10, 9), "old"};
  store_.break_after = 0;
  const auto written = write_regions(io_, kUrl, regions_);
  ASSERT_FALSE(written);
  EXPECT_THAT(written.error().message, HasSubstr(kUrl));
  EXPECT_EQ(store_.objects[kUrl].version, "old");
  EXPECT_THAT(names_below(folder_ / "uploads"), IsEmpty());
}

TEST_F(StoreFiles, WhatDeadProcessesLeftIsRemovedAndWhatLivesIsNot) {
  std::filesystem::create_directories(folder_ / "uploads");
  write_file(folder_ / "uploads/1-0.upload", random_payload(10, 1));
  write_file(folder_ / "uploads/2-0.upload", random_payload(10, 1));
  const UniqueFd living(::open((folder_ / "uploads/2-0.upload").c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_EQ(::flock(living.get(), LOCK_EX | LOCK_NB), 0);
  ASSERT_TRUE(write_regions(io_, kUrl, regions_));
  EXPECT_THAT(names_below(folder_ / "uploads"), ElementsAre("2-0.upload"));
}

TEST_F(StoreFiles, ReadsEndWithTheObject) {
  store_.objects[kUrl] = {random_payload(100, 1), "v1"};
  const auto file = io_.open(kUrl).value();
  Bytes out(64);
  EXPECT_EQ(file->read(out, 90).value(), 10U);
  EXPECT_EQ(file->read(out, 100).value(), 0U);
  EXPECT_EQ(file->read(out, 1000).value(), 0U);
  EXPECT_FALSE(file->write(out, 0));
  EXPECT_FALSE(io_.remove(kUrl));
}

TEST_F(StoreFiles, MoreBytesThanWereAskedForAreRefused) {
  class Liar final : public StoredObject {
   public:
    Liar() : StoredObject({"s3://b/liar", 100, "v1"}) {}
    Result<void> stream(std::uint64_t, std::uint64_t, const ByteSink& sink) const override {
      return sink(Bytes(20));
    }
  };
  Bytes out(10);
  const auto read = Liar().read(0, out);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Errc::kDataLoss);
}

TEST(FileStore, OpensPutsAndStreams) {
  const ScratchFolder folder;
  FileStore store(system_io(IoMode::kBuffered));
  const Bytes bytes = random_payload(3'000'001, 1);
  write_file(folder / "a", bytes);
  const auto put = store.put(folder / "b", folder / "a");
  ASSERT_TRUE(put) << put.error().message;
  EXPECT_EQ(put->size_bytes, bytes.size());
  EXPECT_EQ(bytes_of(folder / "b"), bytes);
  const auto object = store.open(folder / "b").value();
  for (const auto& [offset, size] : std::vector<std::pair<std::size_t, std::size_t>>{
           {0, 3'000'001}, {4095, 2}, {2'999'999, 2}, {1'048'575, 1'048'578}, {17, 0}}) {
    Bytes out(size);
    ASSERT_TRUE(object->read(offset, out));
    EXPECT_TRUE(std::ranges::equal(out, std::span(bytes).subspan(offset, size))) << offset;
  }
  EXPECT_EQ(store.open(folder / "c").error().code, Errc::kNotFound);
  // An open object is the file that it was.
  ASSERT_TRUE(store.put(folder / "b", folder / "b"));
  Bytes out(100);
  EXPECT_TRUE(object->read(0, out));
  std::filesystem::resize_file(folder / "b", 50);
  const auto replaced = store.open(folder / "b").value();
  std::filesystem::resize_file(folder / "b", 20);
  EXPECT_EQ(replaced->read(0, out).error().code, Errc::kDataLoss);
}

TEST(FileStore, ListsRemovesAndStops) {
  const ScratchFolder folder;
  FileStore store(system_io(IoMode::kBuffered));
  const std::string below = folder / "below/";
  EXPECT_THAT(store.list(below, 10).value(), IsEmpty()) << "a folder that is not there";
  std::filesystem::create_directories(below + "b");
  write_file(below + "b/one", random_payload(11, 1));
  write_file(below + "a", random_payload(7, 1));
  write_file(below + "half.thaw-incomplete", random_payload(7, 1));
  const auto listed = store.list(below, 10).value();
  ASSERT_EQ(listed.size(), 2U);
  EXPECT_EQ(listed[0].name, "a");
  EXPECT_EQ(listed[0].size_bytes, 7U);
  EXPECT_GT(listed[0].modified, 1'700'000'000);
  EXPECT_EQ(listed[1].name, "b/one");
  EXPECT_EQ(store.list(below, 1).value().size(), 1U);
  EXPECT_TRUE(store.remove(below + "a"));
  EXPECT_TRUE(store.remove(below + "a")) << "it is removed already";
  EXPECT_EQ(store.list(below, 10).value().size(), 1U);

  const auto other = store.share();
  store.stop();
  EXPECT_EQ(store.open(below + "b/one").error().code, Errc::kCancelled);
  EXPECT_EQ(store.put(below + "c", below + "b/one").error().code, Errc::kCancelled);
  EXPECT_EQ(store.list(below, 1).error().code, Errc::kCancelled);
  EXPECT_EQ(store.remove(below + "b/one").error().code, Errc::kCancelled);
  EXPECT_TRUE(other->open(below + "b/one")) << "it was stopped alone";
}

// Power cuts while an object is put: torn at every byte, and between any two calls.
TEST(FileStore, APutIsTheOldObjectOrTheNewOneWhateverCrashes) {
  const Bytes old_bytes = random_payload(700, 1);
  const Bytes new_bytes = random_payload(3000, 2);
  CrashIo io({{"d/object", old_bytes}, {"d/source", new_bytes}});
  FileStore store(io);
  ASSERT_TRUE(store.put("d/object", "d/source"));
  int news = 0;
  std::size_t torn = 0;
  for (std::size_t call = 0; call <= io.num_calls(); ++call) {
    const std::size_t written = call < io.num_calls() ? io.written_by(call) : 0;
    for (std::size_t byte = 0; byte <= written; ++byte, ++torn) {
      const Survival survival{byte % 3 == 0   ? Survival::Kind::kNothing
                              : byte % 3 == 1 ? Survival::Kind::kEverything
                                              : Survival::Kind::kRandom,
                              static_cast<unsigned>(byte)};
      const Files files = io.after_crash(call, byte, survival);
      const Bytes& found = files.at("d/object");
      ASSERT_TRUE(found == old_bytes || found == new_bytes) << "call " << call << " byte " << byte;
      news += found == new_bytes ? 1 : 0;
      if (call == io.num_calls()) {
        ASSERT_EQ(found, new_bytes) << "it was said to be there";
      }
    }
  }
  EXPECT_GT(torn, 3000U);
  EXPECT_GT(news, 0);
}

TEST(FileStore, ADiskThatIsFullAtAnyCallLeavesTheOldObjectAndNoPart) {
  const Files files{{"d/object", random_payload(700, 1)}, {"d/source", random_payload(3000, 2)}};
  CrashIo whole(files);
  ASSERT_TRUE(FileStore(whole).put("d/object", "d/source"));
  for (std::size_t call = 0; call + 1 < whole.num_calls(); ++call) {
    CrashIo io(files);
    io.fail_from(call);
    const auto put = FileStore(io).put("d/object", "d/source");
    ASSERT_FALSE(put) << call;
    EXPECT_EQ(put.error().code, Errc::kResourceExhausted);
    EXPECT_EQ(io.files(), files) << call;
  }
}

TEST(S3Url, IsTakenApartAndChecked) {
  const auto url = parse_s3_url("s3://my-bucket.x/a/b c/weights.thaw").value();
  EXPECT_EQ(url.bucket, "my-bucket.x");
  EXPECT_EQ(url.key, "a/b c/weights.thaw");
  for (const std::string& text :
       {std::string("s3://"), std::string("s3://bucket"), std::string("s3://bucket/"),
        std::string("s3:///key"), std::string("s3://ab/key"), std::string("s3://Bucket/key"),
        std::string("s3://-bucket/key"), std::string("s3://bucket_x/key"),
        std::string("s3://bucket/../key"), std::string("s3://bucket/a/./b"),
        std::string("s3://bucket/a\nb"), "s3://bucket/" + std::string(1025, 'k'),
        "s3://" + std::string(64, 'b') + "/key", std::string("http://bucket/key")}) {
    const auto refused = parse_s3_url(text);
    ASSERT_FALSE(refused) << text;
    EXPECT_EQ(refused.error().code, Errc::kInvalidArgument);
    EXPECT_THAT(refused.error().message,
                HasSubstr(text.find('\n') == std::string::npos ? text : "S3"));
  }
}

}  // namespace
}  // namespace thaw::kvsnap
