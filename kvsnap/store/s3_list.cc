// What lies in a bucket, and its removal: requests without a body, answered by XML.

#include <algorithm>
#include <cstdlib>
#include <ctime>
#include <string_view>
#include <utility>

#include <aws/common/byte_buf.h>
#include <aws/common/uri.h>

#include "kvsnap/store/s3_errors.h"
#include "kvsnap/store/s3_exchange.h"

namespace thaw::kvsnap {
namespace {

/// What the store gives at once.
constexpr const char* kPage = "?list-type=2&max-keys=1000";

std::string encoded(const S3Runtime& runtime, const std::string& text) {
  aws_byte_buf buffer{};
  aws_byte_buf_init(&buffer, runtime.allocator(), 3 * text.size() + 1);
  const aws_byte_cursor cursor = aws_byte_cursor_from_array(text.data(), text.size());
  aws_byte_buf_append_encoding_uri_param(&buffer, &cursor);
  std::string result(reinterpret_cast<const char*>(buffer.buffer), buffer.len);
  aws_byte_buf_clean_up(&buffer);
  return result;
}

/// Text of an XML element as it was meant.
std::string unescaped(std::string_view text) {
  constexpr std::pair<std::string_view, char> kEntities[] = {
      {"&amp;", '&'}, {"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&apos;", '\''}};
  std::string result;
  while (!text.empty()) {
    const auto* found = std::ranges::find_if(
        kEntities, [&](const auto& entity) { return text.starts_with(entity.first); });
    const bool is_entity = found != std::end(kEntities);
    result += is_entity ? found->second : text.front();
    text.remove_prefix(is_entity ? found->first.size() : 1);
  }
  return result;
}

/// Of "2026-06-12T03:23:20.000Z"; 0 where it is something else.
std::int64_t seconds_of(const std::string& time) {
  std::tm parts{};
  if (::strptime(time.c_str(), "%Y-%m-%dT%H:%M:%S", &parts) == nullptr) return 0;
  return ::timegm(&parts);
}

/// The objects of one page. Errors: kDataLoss where it is none.
Result<void> add_page(const std::string& page, const std::string& folder,
                      std::vector<ListedObject>& objects) {
  constexpr std::string_view kEnd = "</Contents>";
  if (page.find("<ListBucketResult") == std::string::npos)
    return make_error(Errc::kDataLoss, "the answer is no list of objects");
  for (std::size_t start = 0; (start = page.find("<Contents>", start)) != std::string::npos;) {
    const std::size_t end = page.find(kEnd, start);
    if (end == std::string::npos) return make_error(Errc::kDataLoss, "the list is cut off");
    const std::string entry = page.substr(start, end - start);
    start = end + kEnd.size();
    const std::string key = unescaped(xml_text(entry, "Key"));
    if (!key.starts_with(folder) || key.size() == folder.size()) continue;
    ListedObject object;
    object.name = key.substr(folder.size());
    object.size_bytes = std::strtoull(xml_text(entry, "Size").c_str(), nullptr, 10);
    object.modified = seconds_of(xml_text(entry, "LastModified"));
    objects.push_back(std::move(object));
  }
  return {};
}

}  // namespace

Result<std::vector<ListedObject>> s3_list(const S3Caller& caller, const std::string& url,
                                          const S3Url& folder, std::size_t max_objects) {
  std::vector<ListedObject> objects;
  const std::string first = kPage + ("&prefix=" + encoded(*caller.runtime, folder.key));
  std::string query = first;
  while (objects.size() < max_objects) {
    const auto page =
        s3_call(caller, url, {"GET", "ListObjectsV2", {folder.bucket, ""}, std::move(query)});
    if (!page) return page.error();
    const std::size_t before = objects.size();
    if (const auto added = add_page(*page, folder.key, objects); !added)
      return make_error(added.error().code, url + ": " + added.error().message);
    const std::string token = unescaped(xml_text(*page, "NextContinuationToken"));
    // A store that gives nothing and promises more would be asked for ever.
    if (token.empty() || objects.size() == before) break;
    query = first + "&continuation-token=" + encoded(*caller.runtime, token);
  }
  if (objects.size() > max_objects) objects.resize(max_objects);
  return objects;
}

Result<void> s3_delete(const S3Caller& caller, const std::string& url, const S3Url& object) {
  const auto done = s3_call(caller, url, {"DELETE", "DeleteObject", object, ""});
  if (done || done.error().code == Errc::kNotFound) return {};
  return done.error();
}

}  // namespace thaw::kvsnap
