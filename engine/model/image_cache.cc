#include "engine/model/image_cache.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <utility>
#include <vector>

#include "engine/base/file.h"
#include "engine/base/hash.h"
#include "engine/base/log.h"
#include "engine/model/image_file.h"

namespace thaw::model {
namespace {

namespace fs = std::filesystem;

constexpr const char* kImageSuffix = ".thawimg";
constexpr const char* kOrigins[] = {"memory", "packed", "mapped"};  // by ImageOrigin

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string image_path(const std::string& directory, const std::string& key) {
  return (fs::path(directory) / (key + kImageSuffix)).string();
}

/// What decides an image's bytes: the table without its checksums says all but how bytes are
/// packed.
std::string image_key(const ImagePlan& plan) {
  return hash_text("thaw-image-" + std::to_string(ops::kPackingVersion) + "\n" +
                   plan.layout.header())
      .to_hex();
}

std::string record_path(const std::string& directory, const std::vector<std::string>& files) {
  std::string names;
  std::error_code error;
  for (const std::string& file : files) {
    names += fs::absolute(file, error).string();
    names += '\0';
  }
  return (fs::path(directory) / (hash_text(names).to_hex() + ".source.json")).string();
}

std::optional<SourceRecord> read_record(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) return std::nullopt;
  return SourceRecord::from_json(text.str());
}

/// Writes the record, with the images that the former one knew if they are still worth it. Those of
/// another content or packing of these files are removed: nobody will ask for them again.
void update_record(const std::string& directory, const std::string& path, SourceRecord record,
                   const std::string& key) {
  if (const auto former = read_record(path)) {
    const bool same =
        former->digest == record.digest && former->layout_version == record.layout_version;
    for (const std::string& image : former->images) {
      if (same) {
        record.images.push_back(image);
      } else if (image != key && fs::path(image).filename() == image) {
        ::unlink(image_path(directory, image).c_str());
      }
    }
  }
  if (std::ranges::find(record.images, key) == record.images.end()) record.images.push_back(key);
  if (auto written = replace_file(path, record.to_json()); !written)
    logger("images")->warn("{}", written.error().message);
}

/// Removes the images that were used the longest ago until all take `max_bytes`; never `kept`.
void evict(const std::string& directory, std::uint64_t max_bytes, const std::string& kept) {
  struct Image {
    fs::path path;
    std::uint64_t size_bytes;
    fs::file_time_type used;
  };
  std::vector<Image> images;
  std::uint64_t total = 0;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    if (entry.path().extension() != kImageSuffix) continue;
    std::error_code gone;  // another process evicts too
    const Image image{entry.path(), entry.file_size(gone), entry.last_write_time(gone)};
    if (gone) continue;
    total += image.size_bytes;
    if (image.path.stem() != kept) images.push_back(image);
  }
  std::ranges::sort(images, {}, &Image::used);
  for (const Image& image : images) {
    if (total <= max_bytes) return;
    logger("images")->info("evicted={} mib={}", image.path.filename().string(),
                           image.size_bytes >> 20);
    ::unlink(image.path.c_str());
    total -= image.size_bytes;
  }
}

void log_origin(const LoadedImage& image, const std::string& key,
                std::chrono::steady_clock::time_point started) {
  const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::steady_clock::now() - started);
  logger("images")->info("image={} key={} mib={} ms={}", kOrigins[static_cast<int>(image.origin)],
                         key, image.size_bytes >> 20, took.count());
}

}  // namespace

/// What one load() calls its image, and what it will note about the checkpoint.
struct ImageCache::Naming {
  std::string key;
  std::string record_path;
  SourceRecord record;  ///< without images; files as they were before they were read
  bool is_sure = false;  ///< the files could be looked at
};

ImageCache::ImageCache(ImageCacheOptions options)
    : options_(std::move(options)), made_at_ns_(now_ns()) {}

ImageCache::~ImageCache() = default;

void ImageCache::wait() {
  if (finisher_.joinable()) finisher_.join();
}

void ImageCache::finish_in_background(std::function<void(const std::stop_token&)> work) {
  wait();
  finisher_ = std::jthread(std::move(work));
}

Result<LoadedImage> ImageCache::load(const ModelSource& source, const ops::PackingOptions& packing,
                                     ThreadPool& threads) {
  const auto started = std::chrono::steady_clock::now();
  if (options_.max_bytes == 0) {
    auto image = build_image(source, packing, threads);
    if (image) log_origin(*image, "none", started);
    return image;
  }
  const std::vector<std::string> files = source.tensors->files();
  const std::string record_file = record_path(options_.directory, files);
  const auto stamps = stamp_files(files);
  const auto record = read_record(record_file);
  const bool is_known = !options_.verify_source && stamps && record && record->describes(*stamps);
  if (!is_known) {
    if (auto verified = source.tensors->verify(threads); !verified)
      return std::move(verified).error();
  }
  const Hash128 digest = is_known ? record->digest : source.tensors->digest();

  auto plan = plan_image(source, packing, digest);
  if (!plan) return std::move(plan).error();
  Naming naming;
  naming.key = image_key(*plan);
  naming.record_path = record_file;
  naming.record.files = stamps.value_or(std::vector<FileStamp>());
  naming.record.digest = digest;
  naming.record.layout_version = std::to_string(ops::kPackingVersion);
  naming.record.opened_at_ns = is_known ? record->opened_at_ns : made_at_ns_;
  naming.is_sure = stamps.has_value();

  const std::string path = image_path(options_.directory, naming.key);
  auto found = open_image_file(path, *plan, threads);
  if (!found && found.error().code == Errc::kDataLoss) {
    logger("images")->warn("{} is packed again: {}", path, found.error().message);
    ::unlink(path.c_str());
  }
  std::optional<LoadedImage> mapped;
  if (found) mapped = *std::move(found);
  const bool is_mapped = mapped.has_value();
  auto image = mapped ? Result<LoadedImage>(*std::move(mapped)) : pack(*plan, naming, threads);
  if (!image) return image;
  if (is_mapped) {
    ::futimens(image->fd.get(), nullptr);  // used now, for evict()
    if (!is_known && stamps) {
      finish_in_background([directory = options_.directory, naming](const std::stop_token&) {
        update_record(directory, naming.record_path, naming.record, naming.key);
      });
    }
  }
  log_origin(*image, naming.key, started);
  return image;
}

Result<LoadedImage> ImageCache::pack(ImagePlan& plan, const Naming& naming, ThreadPool& threads) {
  const auto in_memory = [&](const std::string& why) {
    logger("images")->warn("the image is not kept: {}", why);
    return build_image(plan, threads);
  };
  const std::uint64_t size_bytes = plan.layout.total_bytes();
  if (size_bytes > options_.max_bytes) {
    return in_memory("it takes " + std::to_string(size_bytes) + " bytes, more than the cache may");
  }
  std::error_code error;
  fs::create_directories(options_.directory, error);
  if (error) return in_memory("cannot make " + options_.directory + ": " + error.message());
  remove_abandoned_drafts(options_.directory);
  auto created = ImageDraft::create(options_.directory, size_bytes);
  if (!created) return in_memory(created.error().message);
  const auto draft = std::make_shared<ImageDraft>(*std::move(created));
  if (auto written = write_image(plan, draft->fd(), threads); !written) {
    if (written.error().code != Errc::kIo) return written.error();
    return in_memory(written.error().message);
  }
  auto reader = draft->open_for_reading();
  if (!reader) return in_memory(reader.error().message);
  const auto mapping = map_fd(reader->get(), size_bytes, MapAccess::kReadOnly);
  if (!mapping) return mapping.error();
  const auto view = checkpoint::WeightImageView::open(mapping->bytes());
  if (!view) return view.error();
  LoadedImage image{*std::move(reader), static_cast<std::size_t>(size_bytes), plan.source->config,
                    view->digest(), ImageOrigin::kPacked};
  // A file that changed while it was read is not what its digest says.
  if (!naming.is_sure || stamp_files(plan.source->tensors->files()) != naming.record.files)
    return image;

  finish_in_background([draft, naming, options = options_](const std::stop_token& stop) {
    const std::string path = image_path(options.directory, naming.key);
    if (auto published = draft->publish(path, stop); !published) {
      logger("images")->warn("the image is not kept: {}", published.error().message);
      return;
    }
    update_record(options.directory, naming.record_path, naming.record, naming.key);
    evict(options.directory, options.max_bytes, naming.key);
  });
  return image;
}

}  // namespace thaw::model
