// In place of s3_*.cc where THAW_S3 is off.

#include "kvsnap/store/s3_options.h"

namespace thaw::kvsnap {

Result<std::unique_ptr<Store>> open_s3_store(const S3Options&) {
  return make_error(
      Errc::kUnsupported,
      "this build of thaw has no S3; `make setup` and `make build` make one that has");
}

bool build_has_s3() {
  return false;
}

std::string aws_profile_setting(const std::string&) {
  return {};
}

}  // namespace thaw::kvsnap
