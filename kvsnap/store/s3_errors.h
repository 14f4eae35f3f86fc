#pragma once

#include <string>

#include "engine/base/error.h"

namespace thaw::kvsnap {

/// How a request ended that did not succeed.
struct S3Failure {
  int code = 0;  ///< of the client library
  int status = 0;  ///< of the answer; 0: there was none
  std::string operation;  ///< "GetObject", ...
  std::string body;  ///< of the answer: XML, or nothing
  std::string bucket_region;  ///< that the answer names
};

/// One line for people: what failed with `url` at `endpoint`, and what would help. `region` is what
/// the request was signed for.
Error s3_error(const S3Failure& failure, const std::string& url, const std::string& endpoint,
               const std::string& region);

/// No TLS connection, because of `why`.
Error s3_tls_error(const std::string& why, const std::string& url, const std::string& endpoint);

/// The text of an element of S3's error documents, such as "Code"; empty where it is not there.
std::string xml_text(const std::string& document, const std::string& element);

}  // namespace thaw::kvsnap
