#pragma once

#include <cstdlib>

#include <gtest/gtest.h>

#include "engine/cuda/device_info.h"
#include "engine/cuda/stream.h"

namespace thaw::cuda {

/// A test that needs a GPU: skips by name where there is none, fails under THAW_REQUIRE_GPU=1.
class GpuTest : public testing::Test {
 protected:
  void SetUp() override {
    if (device_count() > 0) return;
    const char* required = std::getenv("THAW_REQUIRE_GPU");
    if (required != nullptr && *required == '1') FAIL() << "needs a CUDA device, and there is none";
    GTEST_SKIP() << "needs a CUDA device, and there is none";
  }
};

}  // namespace thaw::cuda
