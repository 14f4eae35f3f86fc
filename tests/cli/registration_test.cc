#include "cli/registration.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include <gtest/gtest.h>

namespace thaw::cli {
namespace {

namespace fs = std::filesystem;

TEST(Registration, ReadsNamesAndPaths) {
  const auto parsed = parse_registrations({"small=/m/a.gguf", "org/name=/m/with=equals"});
  ASSERT_TRUE(parsed);
  EXPECT_EQ((*parsed)[0].name, "small");
  EXPECT_EQ((*parsed)[0].path, "/m/a.gguf");
  EXPECT_EQ((*parsed)[1].name, "org/name");
  EXPECT_EQ((*parsed)[1].path, "/m/with=equals");
  EXPECT_TRUE(parse_registrations({})->empty());
}

TEST(Registration, RefusesWhatIsNoPair) {
  for (const char* text : {"small", "=a.gguf", "small=", ""}) {
    const auto parsed = parse_registrations({text});
    ASSERT_FALSE(parsed) << text;
    EXPECT_NE(parsed.error().message.find("NAME=PATH"), std::string::npos);
  }
  const auto twice = parse_registrations({"a=/m/1", "b=/m/2", "a=/m/3"});
  ASSERT_FALSE(twice);
  EXPECT_NE(twice.error().message.find("/m/1 and /m/3"), std::string::npos);
}

/// allowed/{model.gguf, sub/deep.gguf, ...} beside outside/secret.gguf.
class AllowedDirectoriesTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = (fs::temp_directory_path() / "thaw-allowed-XXXXXX").string();
    ASSERT_NE(::mkdtemp(pattern.data()), nullptr);
    root_ = fs::canonical(pattern);
    fs::create_directories(root_ / "allowed" / "sub");
    fs::create_directories(root_ / "allowed-not");
    fs::create_directories(root_ / "outside");
    for (const char* file : {"allowed/model.gguf", "allowed/sub/deep.gguf", "outside/secret.gguf",
                             "allowed-not/near.gguf"})
      std::ofstream(root_ / file) << "x";
    allowed_ = AllowedDirectories::open({(root_ / "allowed").string()}).value();
  }
  void TearDown() override { fs::remove_all(root_); }

  std::string path(const std::string& name) const { return (root_ / name).string(); }
  int status(const std::string& path) const {
    const auto resolved = allowed_.resolve(path);
    const auto* error = std::get_if<coalescer::ApiError>(&resolved);
    return error == nullptr ? 200 : error->status;
  }

  fs::path root_;
  AllowedDirectories allowed_;
};

TEST_F(AllowedDirectoriesTest, TakesWhatLiesInside) {
  EXPECT_EQ(status(path("allowed/model.gguf")), 200);
  EXPECT_EQ(status(path("allowed/sub")), 200);
  EXPECT_EQ(status("model.gguf"), 200) << "relative to the directory";
  EXPECT_EQ(status("sub/deep.gguf"), 200);
  EXPECT_EQ(status("sub/../model.gguf"), 200) << "stays inside";
  EXPECT_EQ(status("missing.gguf"), 404);
  fs::create_symlink("sub/deep.gguf", root_ / "allowed" / "alias.gguf");
  EXPECT_EQ(status("alias.gguf"), 200);
  EXPECT_EQ(std::get<std::string>(allowed_.resolve("alias.gguf")), path("allowed/sub/deep.gguf"));
}

TEST_F(AllowedDirectoriesTest, RefusesWhatLeadsOutside) {
  for (const std::string& outside :
       {std::string("../outside/secret.gguf"), path("outside/secret.gguf"),
        path("allowed/../outside/secret.gguf"), path("allowed-not/near.gguf"),
        path("outside/missing.gguf"), std::string("/etc/passwd"), std::string("/"),
        std::string("../../../../../etc/passwd")})
    EXPECT_EQ(status(outside), 403) << outside;
  fs::create_symlink(path("outside/secret.gguf"), root_ / "allowed" / "link.gguf");
  fs::create_symlink(path("outside"), root_ / "allowed" / "dir");
  fs::create_symlink("../outside", root_ / "allowed" / "relative");
  for (const char* link : {"link.gguf", "dir/secret.gguf", "relative/secret.gguf", "dir"})
    EXPECT_EQ(status(link), 403) << link;
}

TEST_F(AllowedDirectoriesTest, RefusesWhatIsNoFile) {
  ASSERT_EQ(::mkfifo(path("allowed/pipe").c_str(), 0600), 0);
  EXPECT_EQ(status("pipe"), 400) << "opening it would wait for ever";
}

TEST_F(AllowedDirectoriesTest, LooksAtTheFilesOfADirectory) {
  const auto check = [&](const std::string& name) {
    const auto checked = allowed_.check_files({path(name)});
    const auto* error = std::get_if<coalescer::ApiError>(&checked);
    return error == nullptr ? 200 : error->status;
  };
  EXPECT_EQ(check("allowed"), 200);
  fs::create_symlink("deep.gguf", root_ / "allowed" / "sub" / "shard.safetensors");
  EXPECT_EQ(check("allowed/sub"), 200);
  fs::create_symlink("../../outside/secret.gguf", root_ / "allowed" / "sub" / "config.json");
  EXPECT_EQ(check("allowed/sub"), 403);
  EXPECT_EQ(check("allowed"), 403);
  EXPECT_EQ(check("allowed/missing"), 403);
  fs::remove(root_ / "allowed" / "sub" / "config.json");
  ASSERT_EQ(::mkfifo(path("allowed/sub/pipe").c_str(), 0600), 0);
  EXPECT_EQ(check("allowed/sub"), 400);
  fs::remove(root_ / "allowed" / "sub" / "pipe");
  // A directory that leads to itself ends all the same.
  fs::create_symlink(".", root_ / "allowed" / "sub" / "loop");
  EXPECT_EQ(check("allowed/sub"), 400);
}

TEST(AllowedDirectories, MustBeDirectories) {
  EXPECT_FALSE(AllowedDirectories::open({"/no/such/directory"}));
  EXPECT_FALSE(AllowedDirectories::open({"/proc/self/exe"}));
  const auto none = AllowedDirectories::open({});
  ASSERT_TRUE(none);
  EXPECT_TRUE(none->empty());
  EXPECT_EQ(std::get<coalescer::ApiError>(none->resolve("a")).status, 403);
}

}  // namespace
}  // namespace thaw::cli
