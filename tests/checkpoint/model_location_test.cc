#include "engine/checkpoint/model_location.h"

#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/checkpoint/scratch_folder.h"

namespace thaw::checkpoint {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::HasSubstr;

std::string error_of(const std::string& model, const std::string& cache = "/nowhere") {
  const auto found = locate_model(model, cache);
  EXPECT_FALSE(found) << "it was found";
  if (found) return "";
  EXPECT_EQ(found.error().message.find('\n'), std::string::npos);
  return found.error().message;
}

TEST(ModelLocation, FindsFilesAndDirectories) {
  const ScratchFolder folder;
  const std::string file = folder.write("tiny.Q4_1.gguf", "");
  auto found = locate_model(file, "").value();
  EXPECT_EQ(found.kind, ModelKind::kGguf);
  EXPECT_EQ(found.path, file);
  EXPECT_EQ(found.name, "tiny.Q4_1");

  found = locate_model(folder.write("frozen.thaw", ""), "").value();
  EXPECT_EQ(found.kind, ModelKind::kThaw);
  EXPECT_EQ(found.name, "frozen");

  folder.write("hf/config.json", "{}");
  folder.write("hf/model.safetensors", "");
  folder.write("hf/model.gguf", "");
  for (const char* directory : {"hf", "hf/", "hf/."}) {
    found = locate_model(folder / directory, "").value();
    EXPECT_EQ(found.kind, ModelKind::kHuggingFace);
    EXPECT_EQ(found.path, folder / directory);
    EXPECT_EQ(found.name, "hf") << directory;
  }

  folder.write("one/a-00001-of-00002.gguf", "");
  folder.write("one/a-00002-of-00002.gguf", "");
  folder.write("one/README.md", "");
  found = locate_model(folder / "one", "").value();
  EXPECT_EQ(found.kind, ModelKind::kGguf);
  EXPECT_EQ(found.path, folder / "one/a-00001-of-00002.gguf");
  EXPECT_EQ(found.name, "one");
  EXPECT_EQ(locate_model(folder / "one/a-00002-of-00002.gguf", "")->name, "a");
}

TEST(ModelLocation, SaysWhatADirectoryLacks) {
  const ScratchFolder folder;
  EXPECT_THAT(error_of(folder / "none.gguf"), HasSubstr("no such file"));
  EXPECT_THAT(error_of(folder.path()), HasSubstr("no model in this directory"));
  folder.write("pickled/config.json", "{}");
  folder.write("pickled/pytorch_model.bin", "");
  EXPECT_THAT(error_of(folder / "pickled"),
              AllOf(HasSubstr("pytorch_model.bin"), HasSubstr("save_pretrained")));
  folder.write("two/a.gguf", "");
  folder.write("two/b.gguf", "");
  EXPECT_THAT(error_of(folder / "two"), HasSubstr("a.gguf, b.gguf"));
  folder.write("bare/model.safetensors", "");
  EXPECT_THAT(error_of(folder / "bare"), HasSubstr("config.json is missing"));
  folder.write("cut/config.json", "{}");
  folder.write("cut/model-00001-of-00002.safetensors", "");
  EXPECT_THAT(error_of(folder / "cut"), HasSubstr("model.safetensors.index.json is missing"));
  EXPECT_THAT(error_of(folder / "bare/model.safetensors"), HasSubstr("name its directory"));
}

/// A cache as Hugging Face's programs write it: snapshots of links into blobs.
class HubCache : public testing::Test {
 protected:
  static constexpr const char* kCommit = "0123456789abcdef0123456789abcdef01234567";
  static constexpr const char* kOther = "89abcdef0123456789abcdef0123456789abcdef";

  HubCache() {
    add("models--org--name", kCommit, {"config.json", "model.safetensors"});
    add("models--org--name", kOther, {"config.json", "model.safetensors"});
    cache_.write("models--org--name/refs/main", std::string(kCommit) + "\n");
    cache_.write("models--org--name/refs/pr/1", kOther);
  }
  void add(const std::string& repository, const std::string& commit,
           const std::vector<std::string>& files) {
    for (const std::string& file : files) {
      cache_.write(repository + "/blobs/" + file, "{}");
      const fs::path link = fs::path(cache_ / repository) / "snapshots" / commit / file;
      fs::create_directories(link.parent_path());
      fs::create_symlink("../../blobs/" + file, link);
    }
  }
  std::string snapshot(const std::string& commit) {
    return cache_ / ("models--org--name/snapshots/" + commit);
  }
  auto locate(const std::string& model) { return locate_model(model, cache_.path()); }
  std::string error(const std::string& model) { return error_of(model, cache_.path()); }

  ScratchFolder cache_;
};

TEST_F(HubCache, FindsTheDefaultAndNamedRevisions) {
  const auto found = locate("org/name").value();
  EXPECT_EQ(found.kind, ModelKind::kHuggingFace);
  EXPECT_EQ(found.path, snapshot(kCommit));
  EXPECT_EQ(found.name, "org/name");
  EXPECT_EQ(locate("org/name@main")->path, snapshot(kCommit));
  EXPECT_EQ(locate("org/name@pr/1")->path, snapshot(kOther));
  EXPECT_EQ(locate(std::string("org/name@") + kOther)->path, snapshot(kOther));
  add("models--gpt2", kCommit, {"config.json", "model.safetensors"});
  cache_.write("models--gpt2/refs/main", kCommit);
  EXPECT_EQ(locate("gpt2")->name, "gpt2") << "names without an owner";
}

TEST_F(HubCache, APathThatExistsComesFirst) {
  const ScratchFolder here;
  here.write("org/name/config.json", "{}");
  here.write("org/name/model.safetensors", "");
  const fs::path before = fs::current_path();
  fs::current_path(here.path());
  const auto found = locate("org/name");
  fs::current_path(before);
  EXPECT_EQ(found->path, "org/name");
}

TEST_F(HubCache, SaysWhatDownloadsAModel) {
  EXPECT_THAT(error("org/other"),
              AllOf(HasSubstr(cache_.path().string()), HasSubstr("`hf download org/other`")));
  EXPECT_THAT(error("org/other@v2"), HasSubstr("`hf download org/other --revision v2`"));
  EXPECT_THAT(error("org/name@v2"), AllOf(HasSubstr("'v2'"), HasSubstr("main, pr"),
                                          HasSubstr("`hf download org/name --revision v2`")));
  EXPECT_THAT(error("nothing"), HasSubstr("nothing: no such file or directory"));
  EXPECT_THAT(error("/org/name"), HasSubstr("no such file or directory"));
  EXPECT_THAT(error("a/b/c"), HasSubstr("no such file or directory"));
  EXPECT_THAT(error("models/x.gguf"), HasSubstr("models/x.gguf: no such file or directory"));
}

TEST_F(HubCache, SaysWhatIsMissingOfADownload) {
  add("models--org--part", kCommit, {"config.json", "model-00001-of-00002.safetensors"});
  cache_.write("models--org--part/refs/main", kCommit);
  EXPECT_THAT(error("org/part"), AllOf(HasSubstr("model.safetensors.index.json is missing"),
                                       HasSubstr("`hf download org/part`")));
  cache_.write("models--org--gone/refs/main", kCommit);
  EXPECT_THAT(error("org/gone"), HasSubstr("`hf download org/gone`"));
}

TEST_F(HubCache, NothingLeadsOutOfTheCache) {
  cache_.write("models--org--name/refs/evil", "../../../..");
  EXPECT_THAT(error("org/name@evil"), HasSubstr("a commit is right"));
  for (const char* model : {"../org/name", "org/..", "org/name@../../x", "org/name@", "@main",
                            "org/name@.", "org/na me"}) {
    EXPECT_THAT(error(model), HasSubstr("no such file or directory")) << model;
  }
}

}  // namespace
}  // namespace thaw::checkpoint
