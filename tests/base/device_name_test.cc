#include "engine/base/device_name.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace thaw {
namespace {

TEST(DeviceName, WhatPeopleWrite) {
  EXPECT_EQ(parse_device("cpu").value(), DeviceName{});
  EXPECT_EQ(parse_device("cuda").value(), (DeviceName{DeviceName::Kind::kCuda, 0}));
  EXPECT_EQ(parse_device("cuda:0").value(), (DeviceName{DeviceName::Kind::kCuda, 0}));
  EXPECT_EQ(parse_device("cuda:13").value(), (DeviceName{DeviceName::Kind::kCuda, 13}));
}

TEST(DeviceName, ErrorsNameTheValueAndWhatIsRight) {
  for (const char* text : {"", "CPU", "cpu:0", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:1x",
                           "cuda: 1", "cuda:99999999999", "cuda1"}) {
    const auto device = parse_device(text);
    ASSERT_FALSE(device) << text;
    EXPECT_EQ(device.error().code, Errc::kInvalidArgument);
    EXPECT_THAT(device.error().message, testing::HasSubstr("'" + std::string(text) + "'"));
    EXPECT_THAT(device.error().message, testing::HasSubstr("cuda:N"));
  }
}

}  // namespace
}  // namespace thaw
