#include <filesystem>
#include <utility>

#include "engine/base/error.h"
#include "kvsnap/store/s3_exchange.h"
#include "kvsnap/store/s3_options.h"
#include "kvsnap/store/s3_runtime.h"
#include "kvsnap/store/s3_url.h"

namespace thaw::kvsnap {
namespace {

class S3StoredObject final : public StoredObject {
 public:
  S3StoredObject(std::shared_ptr<const S3Caller> caller, ObjectInfo info, S3Url url)
      : StoredObject(std::move(info)), caller_(std::move(caller)), url_(std::move(url)) {}

  Result<void> stream(std::uint64_t offset, std::uint64_t size_bytes,
                      const ByteSink& sink) const override {
    const S3Object expected{info().size_bytes, info().version};
    return s3_get(*caller_, info().url, url_, expected, offset, size_bytes, sink);
  }

 private:
  std::shared_ptr<const S3Caller> caller_;
  S3Url url_;
};

class S3Store final : public Store {
 public:
  explicit S3Store(std::shared_ptr<const S3Runtime> runtime) {
    caller_->runtime = std::move(runtime);
  }

  std::string name() const override { return "s3 " + caller_->runtime->shown_endpoint(); }

  Result<std::unique_ptr<StoredObject>> open(const std::string& url) override {
    auto parsed = parse_s3_url(url);
    if (!parsed) return std::move(parsed).error();
    auto found = s3_probe(*caller_, url, *parsed);
    if (!found) return std::move(found).error();
    return std::unique_ptr<StoredObject>(std::make_unique<S3StoredObject>(
        caller_, ObjectInfo{url, found->size_bytes, std::move(found->etag)}, *std::move(parsed)));
  }

  Result<ObjectInfo> put(const std::string& url, const std::string& path) override {
    const auto parsed = parse_s3_url(url);
    if (!parsed) return parsed.error();
    std::error_code failed;
    const std::uint64_t size = std::filesystem::file_size(path, failed);
    if (failed) return io_error("cannot read " + path, failed.value());
    if (auto done = s3_put(*caller_, url, *parsed, path, size); !done)
      return std::move(done).error();
    auto found = s3_probe(*caller_, url, *parsed);
    // Who may write need not be allowed to read.
    if (!found && found.error().code == Errc::kUnauthenticated) return ObjectInfo{url, size, ""};
    if (!found) return std::move(found).error();
    if (found->size_bytes != size) {
      return make_error(Errc::kDataLoss, url + ": the store has " +
                                             std::to_string(found->size_bytes) + " bytes of the " +
                                             std::to_string(size) + " that were uploaded");
    }
    return ObjectInfo{url, size, std::move(found->etag)};
  }

  Result<std::vector<ListedObject>> list(const std::string& folder,
                                         std::size_t max_objects) override {
    const auto parsed = parse_s3_url(folder);
    if (!parsed) return parsed.error();
    return s3_list(*caller_, folder, *parsed, max_objects);
  }

  Result<void> remove(const std::string& url) override {
    const auto parsed = parse_s3_url(url);
    if (!parsed) return parsed.error();
    return s3_delete(*caller_, url, *parsed);
  }

  std::unique_ptr<Store> share() override { return std::make_unique<S3Store>(caller_->runtime); }
  void stop() override { caller_->is_stopped = true; }

 private:
  std::shared_ptr<S3Caller> caller_ = std::make_shared<S3Caller>();
};

}  // namespace

Result<std::unique_ptr<Store>> open_s3_store(const S3Options& options) {
  auto runtime = S3Runtime::create(options);
  if (!runtime) return std::move(runtime).error();
  return std::unique_ptr<Store>(std::make_unique<S3Store>(std::move(*runtime)));
}

bool build_has_s3() {
  return true;
}

}  // namespace thaw::kvsnap
