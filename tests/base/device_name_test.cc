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
  EXPECT_EQ(parse_device("cuda:2,0,7").value(), (DeviceName{DeviceName::Kind::kCuda, 2, {0, 7}}));
  for (const char* text : {"cpu", "cuda:0", "cuda:3", "cuda:1,0"})
    EXPECT_EQ(to_string(parse_device(text).value()), text);
}

TEST(DeviceName, WorkersTakeTheirDevicesInTurn) {
  const auto of = [](const char* all, unsigned worker, unsigned size) {
    return to_string(devices_of_worker(parse_device(all).value(), worker, size));
  };
  EXPECT_EQ(of("cpu", 3, 1), "cpu");
  EXPECT_EQ(of("cuda:1", 5, 1), "cuda:1");  // all on one
  EXPECT_EQ(of("cuda:1", 0, 2), "cuda:1,2");
  EXPECT_EQ(of("cuda:4,5", 0, 1), "cuda:4");
  EXPECT_EQ(of("cuda:4,5", 1, 1), "cuda:5");
  EXPECT_EQ(of("cuda:4,5", 2, 1), "cuda:4");
  EXPECT_EQ(of("cuda:0,1,2,3", 1, 2), "cuda:2,3");
  EXPECT_EQ(of("cuda:0,0", 0, 2), "cuda:0,0");
}

TEST(DeviceName, ErrorsNameTheValueAndWhatIsRight) {
  for (const char* text :
       {"", "CPU", "cpu:0", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:1x", "cuda: 1",
        "cuda:99999999999", "cuda1", "cuda:0,", "cuda:,1", "cuda:0,x"}) {
    const auto device = parse_device(text);
    ASSERT_FALSE(device) << text;
    EXPECT_EQ(device.error().code, Errc::kInvalidArgument);
    EXPECT_THAT(device.error().message, testing::HasSubstr("'" + std::string(text) + "'"));
    EXPECT_THAT(device.error().message, testing::HasSubstr("cuda:N"));
  }
}

}  // namespace
}  // namespace thaw
