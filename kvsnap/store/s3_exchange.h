#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/base/result.h"
#include "kvsnap/store/s3_runtime.h"
#include "kvsnap/store/s3_url.h"
#include "kvsnap/store/store.h"

namespace thaw::kvsnap {

/// Who asks. Its operations end, with kCancelled, once it is stopped.
struct S3Caller {
  std::shared_ptr<const S3Runtime> runtime;
  std::atomic<bool> is_stopped = false;
};

/// What an answer says of an object.
struct S3Object {
  std::uint64_t size_bytes = 0;
  std::string etag;
};

/// Size and ETag, by a request for the first byte: unlike one for the headers alone, its refusal
/// says why. Errors: Store::open()'s.
Result<S3Object> s3_probe(const S3Caller& caller, const std::string& url, const S3Url& object);

/// `size_bytes` of `expected` from `offset` on, as ranges fetched at once, in order to `sink`.
/// Ends in an error unless every byte came, of that ETag, from an object of that size. Errors:
/// StoredObject::stream()'s.
Result<void> s3_get(const S3Caller& caller, const std::string& url, const S3Url& object,
                    const S3Object& expected, std::uint64_t offset, std::uint64_t size_bytes,
                    const ByteSink& sink);

/// Uploads a file, in parts at once where it is large. What had been uploaded of one that fails is
/// dropped. Errors: Store::put()'s.
Result<void> s3_put(const S3Caller& caller, const std::string& url, const S3Url& object,
                    const std::string& path, std::uint64_t size_bytes);

/// The objects whose keys begin with the folder's; their names are what follows. Errors:
/// Store::list()'s.
Result<std::vector<ListedObject>> s3_list(const S3Caller& caller, const std::string& url,
                                          const S3Url& folder, std::size_t max_objects);

/// Errors: Store::remove()'s.
Result<void> s3_delete(const S3Caller& caller, const std::string& url, const S3Url& object);

/// A request without a body, and the text of its answer. `query` begins with '?', or is empty.
struct S3Request {
  const char* method = "GET";
  const char* operation = "";
  S3Url object;  ///< its key may be empty: the bucket
  std::string query;
};
Result<std::string> s3_call(const S3Caller& caller, const std::string& url,
                            const S3Request& request);

}  // namespace thaw::kvsnap
