#include "cli/remote_files.h"

#include <utility>

#include "cli/weights_file.h"
#include "kvsnap/container_reader.h"
#include "kvsnap/shard_path.h"
#include "kvsnap/store/s3_url.h"

namespace thaw::cli {

bool is_remote(const std::string& name) {
  return kvsnap::is_s3_url(name);
}

RemoteFiles::RemoteFiles(std::unique_ptr<kvsnap::Store> store, const std::string& directory,
                         std::uint64_t max_bytes)
    : store_(std::move(store)),
      cache_(directory, max_bytes),
      io_(*store_, directory + "/uploads") {}

Result<std::unique_ptr<RemoteFiles>> RemoteFiles::open(const S3Settings& settings,
                                                       const std::string& directory) {
  auto store = kvsnap::open_s3_store(s3_options(settings));
  if (!store) return std::move(store).error();
  return std::unique_ptr<RemoteFiles>(
      new RemoteFiles(*std::move(store), directory, settings.cache_bytes));
}

Result<void> RemoteFiles::check_output(const std::string& url) {
  const auto object = store_->open(url);
  if (object) return {};
  // Who may write need not be allowed to read, or to know what is not there.
  const Errc code = object.error().code;
  if (code == Errc::kNotFound || code == Errc::kUnauthenticated) return {};
  return object.error();
}

Result<std::string> RemoteFiles::fetch_weights(const std::string& url) {
  auto path = cache_.fetch(*store_, url);
  if (!path) return path;
  const auto reader =
      kvsnap::ContainerReader::open(kvsnap::system_io(kvsnap::IoMode::kBuffered), *path);
  if (!reader) return reader.error();
  ThreadPool caller(1);
  const auto document = read_weights_document(*reader, caller);
  if (!document) return document.error();
  const std::optional<WeightsDocument>& weights = *document;
  const std::uint32_t num_ranks = weights ? weights->num_ranks : 1;
  for (std::uint32_t rank = 1; rank < num_ranks; ++rank) {
    const std::string shard = kvsnap::shard_path(url, rank);
    const auto fetched = cache_.fetch(*store_, shard);
    if (!fetched && fetched.error().code == Errc::kNotFound) {
      return make_error(Errc::kNotFound, shard + " is missing; the model is split over " +
                                             std::to_string(num_ranks) + " files");
    }
    if (!fetched) return fetched.error();
  }
  return path;
}

}  // namespace thaw::cli
