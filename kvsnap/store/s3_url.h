#pragma once

#include <string>

#include "engine/base/result.h"

namespace thaw::kvsnap {

/// s3://BUCKET/KEY.
struct S3Url {
  std::string bucket;
  std::string key;
};

/// Whether it begins with "s3://".
bool is_s3_url(const std::string& text);

/// Errors: kInvalidArgument, naming what is wrong: bucket names have 3 to 63 of a-z, 0-9, '.' and
/// '-', keys 1 to 1024 bytes without control characters, and no part of a key is "." or "..".
Result<S3Url> parse_s3_url(const std::string& text);

}  // namespace thaw::kvsnap
