// A cached image has the bytes of a fresh one, or is not used.

#include "engine/model/image_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "engine/model/image_file.h"
#include "tests/checkpoint/scratch_folder.h"
#include "tests/model/model_harness.h"

namespace thaw::model {
namespace {

namespace fs = std::filesystem;

std::string bytes_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string bytes_of(const LoadedImage& image) {
  const Mapping mapping = map_fd(image.fd.get(), image.size_bytes, MapAccess::kReadOnly).value();
  return {reinterpret_cast<const char*>(mapping.data()), mapping.size_bytes()};
}

class ImageCacheTest : public testing::Test {
 protected:
  static constexpr std::uint64_t kPlenty = std::uint64_t{1} << 30;

  ImageCacheTest() : model_(folder_ / "model.gguf"), images_(folder_ / "images") {
    put_model("q4_1");
  }

  /// Copies a tiny model to where load() looks.
  void put_model(const std::string& name) {
    fs::copy_file(tiny_model_path(name), model_, fs::copy_options::overwrite_existing);
  }

  /// A start of a server: looks the model up, waits until what it packed is published.
  LoadedImage load(ImageCacheOptions options, ops::ComputeMode mode = ops::ComputeMode::kNative) {
    ImageCache cache(std::move(options));
    LoadedImage image = cache.load(gguf_source(model_), {mode}, threads_).value();
    cache.wait();
    return image;
  }
  LoadedImage load(ops::ComputeMode mode = ops::ComputeMode::kNative) {
    return load({images_, kPlenty}, mode);
  }

  LoadedImage fresh(ops::ComputeMode mode = ops::ComputeMode::kNative) {
    return build_image(gguf_source(model_), {mode}, threads_).value();
  }

  std::vector<std::string> files(const std::string& extension) const {
    std::vector<std::string> found;
    std::error_code error;
    for (const auto& entry : fs::directory_iterator(images_, error)) {
      if (entry.path().extension() == extension) found.push_back(entry.path().string());
    }
    return found;
  }
  std::string only_image() const {
    const auto found = files(".thawimg");
    EXPECT_EQ(found.size(), 1u);
    return found.empty() ? std::string() : found.front();
  }

  /// Replaces the bytes of an image, which is read-only.
  static void overwrite(const std::string& path, const std::string& bytes) {
    fs::remove(path);
    std::ofstream(path, std::ios::binary) << bytes;
  }

  checkpoint::ScratchFolder folder_;
  std::string model_;
  std::string images_;
  ThreadPool threads_{2};
};

TEST_F(ImageCacheTest, AHitHasTheBytesOfAFreshImage) {
  for (const char* name : {"q4_1", "f32", "mixed", "untied", "rope-freqs"}) {
    put_model(name);
    const LoadedImage memory = fresh();
    const LoadedImage packed = load();
    const LoadedImage mapped = load();
    EXPECT_EQ(memory.origin, ImageOrigin::kMemory);
    EXPECT_EQ(packed.origin, ImageOrigin::kPacked);
    EXPECT_EQ(mapped.origin, ImageOrigin::kMapped);
    EXPECT_EQ(bytes_of(packed), bytes_of(memory)) << name;
    EXPECT_EQ(bytes_of(mapped), bytes_of(memory)) << name;
    EXPECT_EQ(mapped.digest, memory.digest);
    EXPECT_EQ(mapped.config.to_json(), memory.config.to_json());
    EXPECT_EQ(::fcntl(mapped.fd.get(), F_GETFL) & O_ACCMODE, O_RDONLY);
    EXPECT_EQ(::fcntl(packed.fd.get(), F_GETFL) & O_ACCMODE, O_RDONLY);
  }
  EXPECT_TRUE(files(".draft").empty());
}

TEST_F(ImageCacheTest, WhatIsOpenOutlivesItsName) {
  const LoadedImage packed = load();
  const std::string before = bytes_of(packed);
  struct stat image {};
  struct stat named {};
  ASSERT_EQ(::fstat(packed.fd.get(), &image), 0);
  ASSERT_EQ(::stat(only_image().c_str(), &named), 0);
  EXPECT_EQ(image.st_ino, named.st_ino) << "the server keeps a second copy";
  fs::remove_all(images_);
  EXPECT_EQ(bytes_of(packed), before);
  EXPECT_EQ(load().origin, ImageOrigin::kPacked);
}

TEST_F(ImageCacheTest, EveryDamagedHeaderByteIsFound) {
  const std::string good = bytes_of(load());
  const std::string path = only_image();
  const std::size_t header_bytes =
      checkpoint::WeightImageView::open(std::as_bytes(std::span(good.data(), good.size())))
          .value()
          .header()
          .size();
  const ModelSource source = gguf_source(model_);
  const ImagePlan plan =
      plan_image(source, {ops::ComputeMode::kNative}, source.tensors->digest()).value();
  ASSERT_TRUE(open_image_file(path, plan, threads_).value());
  for (std::size_t at = 0; at < header_bytes; ++at) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << at % 8));
    overwrite(path, bad);
    const auto opened = open_image_file(path, plan, threads_);
    ASSERT_FALSE(opened) << "byte " << at;
    EXPECT_EQ(opened.error().code, Errc::kDataLoss);
  }
}

TEST_F(ImageCacheTest, DamagedImagesArePackedAgain) {
  const std::string good = bytes_of(load());
  const std::string path = only_image();
  std::vector<std::string> damaged = {"", "x", std::string(good.size(), '\0'), good + "x",
                                      bytes_of(tiny_model_path("q4_1"))};
  for (std::size_t step = 1; step < 12; ++step)
    damaged.push_back(good.substr(0, good.size() * step / 12));
  for (const std::size_t cut : {8UL, 16UL, 32UL, 4095UL, 4096UL})
    damaged.push_back(good.substr(0, cut));
  // One bit somewhere in the tensors. The padding between them may hold anything.
  const auto view =
      checkpoint::WeightImageView::open(std::as_bytes(std::span(good.data(), good.size()))).value();
  for (const checkpoint::WeightEntry& entry : view.entries()) {
    damaged.push_back(good);
    damaged.back()[entry.offset + entry.size_bytes / 2] ^= 4;
  }
  for (std::size_t i = 0; i < damaged.size(); ++i) {
    overwrite(path, damaged[i]);
    const LoadedImage again = load();
    ASSERT_EQ(again.origin, ImageOrigin::kPacked) << "case " << i;
    ASSERT_EQ(bytes_of(again), good) << "case " << i;
    ASSERT_EQ(bytes_of(only_image()), good) << "case " << i;
  }
  EXPECT_EQ(load().origin, ImageOrigin::kMapped);
}

TEST_F(ImageCacheTest, AnotherModelsImageUnderThisNameIsRefused) {
  const std::string other = [&] {
    put_model("f32");
    return bytes_of(load());
  }();
  fs::remove_all(images_);
  put_model("q4_1");
  const std::string good = bytes_of(load());
  overwrite(only_image(), other);
  EXPECT_EQ(load().origin, ImageOrigin::kPacked);
  // Of the same layout and size, but other weights: whole in itself.
  const ModelSource source = gguf_source(model_);
  ImagePlan plan = plan_image(source, {ops::ComputeMode::kNative}, Hash128{}).value();
  const LoadedImage foreign = build_image(plan, threads_).value();
  ASSERT_EQ(foreign.size_bytes, good.size());
  overwrite(only_image(), bytes_of(foreign));
  const LoadedImage again = load();
  EXPECT_EQ(again.origin, ImageOrigin::kPacked);
  EXPECT_EQ(bytes_of(again), good);
}

TEST_F(ImageCacheTest, SomethingElseUnderThisNameIsNoImage) {
  load();
  const std::string path = only_image();
  fs::remove(path);
  fs::create_directory(path);
  EXPECT_EQ(bytes_of(load()), bytes_of(fresh()));
  fs::remove_all(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_EQ(bytes_of(load()), bytes_of(fresh()));
  fs::remove(path);
  fs::create_symlink(folder_ / "nothing", path);
  EXPECT_EQ(bytes_of(load()), bytes_of(fresh()));
}

TEST_F(ImageCacheTest, OptionsHaveKeysOfTheirOwn) {
  EXPECT_EQ(load(ops::ComputeMode::kNative).origin, ImageOrigin::kPacked);
  EXPECT_EQ(load(ops::ComputeMode::kExact32).origin, ImageOrigin::kPacked);
  EXPECT_EQ(load(ops::ComputeMode::kNative).origin, ImageOrigin::kMapped);
  const LoadedImage exact = load(ops::ComputeMode::kExact32);
  EXPECT_EQ(exact.origin, ImageOrigin::kMapped);
  EXPECT_EQ(bytes_of(exact), bytes_of(fresh(ops::ComputeMode::kExact32)));
  EXPECT_EQ(files(".thawimg").size(), 2u);
}

TEST_F(ImageCacheTest, ChangedFilesHaveNewImagesAndTheOldOnesGo) {
  const std::string before = bytes_of(load());
  const std::string old_image = only_image();
  // Of the same size, in place: a norm's weights lie at the end of the file.
  std::string bytes = bytes_of(model_);
  bytes[bytes.size() - 3] ^= 0x11;
  {
    std::fstream file(model_, std::ios::binary | std::ios::in | std::ios::out);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  const LoadedImage changed = load();
  EXPECT_EQ(changed.origin, ImageOrigin::kPacked);
  EXPECT_NE(bytes_of(changed), before);
  EXPECT_EQ(bytes_of(changed), bytes_of(fresh()));
  EXPECT_NE(only_image(), old_image);
  // Put in its place by a rename, with the old times.
  const auto time = fs::last_write_time(model_);
  fs::copy_file(tiny_model_path("q4_1"), folder_ / "next");
  fs::last_write_time(folder_ / "next", time);
  fs::rename(folder_ / "next", model_);
  const LoadedImage replaced = load();
  EXPECT_EQ(bytes_of(replaced), before);
  EXPECT_EQ(only_image(), old_image);
}

TEST_F(ImageCacheTest, AMovedModelFindsItsImage) {
  load();
  fs::rename(model_, folder_ / "elsewhere.gguf");
  model_ = folder_ / "elsewhere.gguf";
  EXPECT_EQ(load().origin, ImageOrigin::kMapped);
}

TEST(SourceRecord, BelievesOnlyFilesThatDidNotChange) {
  const checkpoint::ScratchFolder folder;
  const std::string path = folder.write("model", "content");
  const auto stamps = stamp_files({path}).value();
  constexpr std::int64_t kMinuteNs = 60'000'000'000;
  SourceRecord record;
  record.files = stamps;
  record.opened_at_ns = stamps[0].changed_ns + kMinuteNs;
  EXPECT_TRUE(record.describes(stamps));
  record.opened_at_ns = stamps[0].changed_ns;
  EXPECT_FALSE(record.describes(stamps)) << "it may have changed since, within the clock's grain";
  record.opened_at_ns = stamps[0].changed_ns + kMinuteNs;

  for (const auto change :
       {+[](FileStamp& stamp) { stamp.path += "x"; }, +[](FileStamp& stamp) { ++stamp.device; },
        +[](FileStamp& stamp) { ++stamp.inode; }, +[](FileStamp& stamp) { ++stamp.size_bytes; },
        +[](FileStamp& stamp) { --stamp.modified_ns; },
        +[](FileStamp& stamp) { --stamp.changed_ns; }}) {
    auto other = stamps;
    change(other[0]);
    EXPECT_FALSE(record.describes(other));
  }
  EXPECT_FALSE(record.describes({}));
  EXPECT_FALSE(stamp_files({path, folder / "missing"}));
  EXPECT_FALSE(stamp_files({folder.path().string()})) << "a folder";
}

TEST(SourceRecord, SurvivesJson) {
  SourceRecord record;
  record.files = {{"/a b", 1, 2, 3, -4, 5}, {"/c", 0, ~0ULL, 0, 0, 0}};
  record.digest.bytes[3] = 0xAB;
  record.layout_version = "7";
  record.images = {"one", "two"};
  record.opened_at_ns = 9;
  const SourceRecord back = SourceRecord::from_json(record.to_json()).value();
  EXPECT_EQ(back.files, record.files);
  EXPECT_EQ(back.digest, record.digest);
  EXPECT_EQ(back.layout_version, record.layout_version);
  EXPECT_EQ(back.images, record.images);
  EXPECT_EQ(back.opened_at_ns, record.opened_at_ns);
  const std::string text = record.to_json();
  for (std::size_t size = 0; size + 2 < text.size(); ++size)
    EXPECT_FALSE(SourceRecord::from_json(text.substr(0, size))) << size;
  for (const char* bad : {"null", "[]", "{}", R"({"files":1})"})
    EXPECT_FALSE(SourceRecord::from_json(bad)) << bad;
  std::string wrong = text;
  wrong.replace(wrong.find("ab"), 2, "xy");
  EXPECT_FALSE(SourceRecord::from_json(wrong)) << "no hex";
}

/// The one record in the cache, as if its model had been opened long after it was written.
class BelievedRecord : public ImageCacheTest {
 protected:
  BelievedRecord() {
    load();
    for (const auto& entry : fs::directory_iterator(images_)) {
      if (entry.path().extension() == ".json") path_ = entry.path().string();
    }
    record_ = SourceRecord::from_json(bytes_of(path_)).value();
    record_.opened_at_ns += 60'000'000'000;
    write();
  }
  void write() const { std::ofstream(path_, std::ios::binary) << record_.to_json(); }

  std::string path_;
  SourceRecord record_;
};

TEST_F(BelievedRecord, SparesTheReadingOfTheFiles) {
  // A digest that no file has shows that it is taken from the record.
  record_.digest.bytes.fill(7);
  write();
  EXPECT_EQ(load().origin, ImageOrigin::kPacked);
  EXPECT_EQ(load().origin, ImageOrigin::kMapped);
}

// Size and modification time as before: the change time and the inode tell.
TEST_F(BelievedRecord, DoesNotHideAChangedFile) {
  const auto time = fs::last_write_time(model_);
  std::string bytes = bytes_of(model_);
  bytes[bytes.size() - 3] ^= 0x11;
  {
    std::fstream file(model_, std::ios::binary | std::ios::in | std::ios::out);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  }
  fs::last_write_time(model_, time);
  const LoadedImage changed = load();
  EXPECT_EQ(changed.origin, ImageOrigin::kPacked);
  EXPECT_EQ(bytes_of(changed), bytes_of(fresh()));
}

TEST_F(BelievedRecord, DoesNotHideAReplacedFile) {
  const auto time = fs::last_write_time(model_);
  std::string bytes = bytes_of(model_);
  bytes[bytes.size() - 3] ^= 0x11;
  const std::string next = folder_.write("next", bytes);
  fs::last_write_time(next, time);
  fs::rename(next, model_);
  const LoadedImage replaced = load();
  EXPECT_EQ(replaced.origin, ImageOrigin::kPacked);
  EXPECT_EQ(bytes_of(replaced), bytes_of(fresh()));
}

TEST_F(BelievedRecord, IsNotTakenWhenTheSourceIsToBeVerified) {
  const std::string before = only_image();
  record_.digest.bytes.fill(7);
  write();
  EXPECT_EQ(load({images_, kPlenty, true}).origin, ImageOrigin::kMapped);
  EXPECT_TRUE(fs::exists(before));
  EXPECT_NE(SourceRecord::from_json(bytes_of(path_))->digest, record_.digest) << "still wrong";
}

TEST_F(BelievedRecord, OfAnotherPackingTakesItsImagesAlong) {
  const std::string stale = images_ + "/stale.thawimg";
  std::ofstream(stale) << "of another version";
  const std::string outside = folder_.write("outside.thawimg", "not ours");
  record_.images = {"stale", "../outside"};
  record_.layout_version = "0";
  write();
  fs::last_write_time(model_, fs::last_write_time(model_) + std::chrono::hours(1));
  load();
  EXPECT_FALSE(fs::exists(stale));
  EXPECT_TRUE(fs::exists(outside));
}

TEST_F(BelievedRecord, ThatIsDamagedIsMadeAgain) {
  for (const char* text : {"", "{", "[1,2]", "\0\xff\xfe"}) {
    std::ofstream(path_, std::ios::binary) << text;
    EXPECT_EQ(load().origin, ImageOrigin::kMapped);
    EXPECT_TRUE(SourceRecord::from_json(bytes_of(path_)));
  }
}

TEST_F(ImageCacheTest, TheOldestGoWhenThereIsNoRoom) {
  put_model("f32");
  load();
  const std::string oldest = only_image();
  model_ = folder_ / "second.gguf";
  put_model("q8_0");
  const std::uint64_t second_bytes = load().size_bytes;
  auto both = files(".thawimg");
  ASSERT_EQ(both.size(), 2u);
  const auto past = fs::last_write_time(oldest) - std::chrono::hours(2);
  for (const std::string& path : both)
    fs::last_write_time(path, past + std::chrono::hours(path == oldest ? 0 : 1));
  model_ = folder_ / "third.gguf";
  put_model("q4_1");
  const std::uint64_t third_bytes = fresh().size_bytes;
  EXPECT_EQ(load({images_, second_bytes + third_bytes}).origin, ImageOrigin::kPacked);
  EXPECT_EQ(files(".thawimg").size(), 2u);
  EXPECT_FALSE(fs::exists(oldest));
  // The last one fits alone and is kept, whatever else goes.
  model_ = folder_ / "fourth.gguf";
  put_model("mixed");
  EXPECT_EQ(load({images_, fresh().size_bytes}).origin, ImageOrigin::kPacked);
  EXPECT_EQ(load().origin, ImageOrigin::kMapped);
  EXPECT_EQ(files(".thawimg").size(), 1u);
  EXPECT_EQ(load({images_, fresh().size_bytes - 1}).origin, ImageOrigin::kMapped);
}

TEST_F(ImageCacheTest, AHitIsAUse) {
  load();
  const std::string path = only_image();
  const auto past = fs::last_write_time(path) - std::chrono::hours(1);
  fs::last_write_time(path, past);
  EXPECT_EQ(load().origin, ImageOrigin::kMapped);
  EXPECT_GT(fs::last_write_time(path), past);
}

TEST_F(ImageCacheTest, WithoutACacheEverythingIsPackedIntoMemory) {
  EXPECT_EQ(load({images_, 0}).origin, ImageOrigin::kMemory);
  EXPECT_FALSE(fs::exists(images_));
  const std::uint64_t needed = fresh().size_bytes;
  EXPECT_EQ(load({images_, needed - 1}).origin, ImageOrigin::kMemory);
  EXPECT_TRUE(files(".thawimg").empty());
  // A place where nothing can be made.
  const LoadedImage image = load({model_ + "/images", kPlenty});
  EXPECT_EQ(image.origin, ImageOrigin::kMemory);
  EXPECT_EQ(bytes_of(image), bytes_of(fresh()));
  EXPECT_EQ(load({"/proc/thaw-images", kPlenty}).origin, ImageOrigin::kMemory);
}

TEST_F(ImageCacheTest, ErrorsOfTheCheckpointAreItsOwn) {
  std::string bytes = bytes_of(model_);
  const std::size_t at = bytes.find("blk.1.attn_k.weight");
  bytes[at + 9] = 'x';
  std::ofstream(model_, std::ios::binary) << bytes;
  ImageCache cache({images_, kPlenty});
  const auto image = cache.load(gguf_source(model_), {ops::ComputeMode::kNative}, threads_);
  ASSERT_FALSE(image);
  EXPECT_NE(image.error().message.find(model_), std::string::npos);
  cache.wait();
  EXPECT_TRUE(files(".draft").empty());
}

TEST_F(ImageCacheTest, DraftsOfTheDeadAreRemovedAndThoseOfTheLivingStay) {
  fs::create_directories(images_);
  auto alive = ImageDraft::create(images_, 100).value();
  const std::string dead = images_ + "/abcdef.draft";
  std::ofstream(dead) << "half";
  load();
  EXPECT_TRUE(fs::exists(dead)) << "it may be a new one, not locked yet";
  for (const std::string& draft : files(".draft"))
    fs::last_write_time(draft, fs::last_write_time(draft) - std::chrono::hours(1));
  put_model("f32");
  load();
  EXPECT_FALSE(fs::exists(dead));
  EXPECT_EQ(files(".draft").size(), 1u);
  const std::stop_token never;
  ASSERT_TRUE(alive.publish(images_ + "/x.thawimg", never));
  EXPECT_TRUE(files(".draft").empty());
  EXPECT_EQ(fs::file_size(images_ + "/x.thawimg"), 100u);
}

TEST_F(ImageCacheTest, AnUnfinishedDraftIsGivenUpWhenItsProcessEnds) {
  fs::create_directories(images_);
  {
    auto draft = ImageDraft::create(images_, 100).value();
    std::stop_source stop;
    stop.request_stop();
    const auto published = draft.publish(images_ + "/x.thawimg", stop.get_token());
    ASSERT_FALSE(published);
    EXPECT_EQ(published.error().code, Errc::kCancelled);
  }
  EXPECT_TRUE(fs::is_empty(images_));
}

TEST_F(ImageCacheTest, ServersThatStartAtOnceAllGetTheSameBytes) {
  const std::string good = bytes_of(fresh());
  for (int round = 0; round < 3; ++round) {
    fs::remove_all(images_);
    std::vector<std::thread> servers;
    std::vector<std::string> got(6);
    for (std::string& bytes : got) {
      servers.emplace_back([this, &bytes] {
        ThreadPool threads(1);
        ImageCache cache({images_, kPlenty});
        const auto image = cache.load(gguf_source(model_), {ops::ComputeMode::kNative}, threads);
        if (image) bytes = bytes_of(*image);
        cache.wait();
      });
    }
    for (std::thread& server : servers)
      server.join();
    for (const std::string& bytes : got)
      ASSERT_EQ(bytes, good);
    EXPECT_EQ(bytes_of(only_image()), good);
    EXPECT_TRUE(files(".draft").empty());
  }
}

}  // namespace
}  // namespace thaw::model
