#include "cli/api_keys.h"

#include <cstdio>
#include <fstream>

#include <gtest/gtest.h>

namespace thaw::cli {
namespace {

TEST(ApiKeys, NamesTenants) {
  const auto keys = load_api_keys({"team-a:secret", "plain"}, "");
  ASSERT_TRUE(keys);
  ASSERT_EQ(keys->size(), 2U);
  EXPECT_EQ((*keys)[0].tenant, "team-a");
  EXPECT_EQ((*keys)[0].key, "secret");
  EXPECT_EQ((*keys)[1].key, "plain");
  EXPECT_EQ((*keys)[1].tenant.find("plain"), std::string::npos) << "a tenant's name shows in logs";
  EXPECT_FALSE((*keys)[1].tenant.empty());
}

TEST(ApiKeys, ReadsAFile) {
  const std::string path = testing::TempDir() + "/thaw_keys.txt";
  std::ofstream(path) << "# team keys\n\na:one  \r\n  \nb:two\n";
  const auto keys = load_api_keys({}, path);
  std::remove(path.c_str());
  ASSERT_TRUE(keys);
  ASSERT_EQ(keys->size(), 2U);
  EXPECT_EQ((*keys)[0].key, "one");
  EXPECT_EQ((*keys)[1].tenant, "b");
}

TEST(ApiKeys, RefusesBadInput) {
  EXPECT_FALSE(load_api_keys({"tenant:"}, ""));
  EXPECT_FALSE(load_api_keys({":key"}, ""));
  EXPECT_FALSE(load_api_keys({"a:same", "b:same"}, ""));
  EXPECT_FALSE(load_api_keys({std::string(1025, 't') + ":key"}, ""));
  const auto missing = load_api_keys({}, "/nonexistent/keys");
  ASSERT_FALSE(missing);
  EXPECT_NE(missing.error().message.find("/nonexistent/keys"), std::string::npos);
}

}  // namespace
}  // namespace thaw::cli
