#include "engine/checkpoint/hf_directory.h"

#include <filesystem>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/checkpoint/scratch_folder.h"

namespace thaw::checkpoint {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class HfDirectoryTest : public testing::Test {
 protected:
  HfDirectoryTest() { folder_.write("config.json", R"({"model_type":"llama"})"); }
  HfDirectory read() { return read_hf_directory(folder_.path()).value(); }
  std::string error() {
    const auto directory = read_hf_directory(folder_.path());
    EXPECT_FALSE(directory);
    return directory ? "" : directory.error().message;
  }

  ScratchFolder folder_;
};

TEST_F(HfDirectoryTest, ReadsWhatIsThere) {
  folder_.write("generation_config.json", "{}");
  folder_.write("tokenizer.json", R"({"version":"1.0"})");
  const HfDirectory directory = read();
  EXPECT_EQ(directory.config, R"({"model_type":"llama"})");
  EXPECT_EQ(directory.generation_config, "{}");
  EXPECT_EQ(directory.tokenizer, R"({"version":"1.0"})");
  EXPECT_EQ(directory.tokenizer_config, "");
  EXPECT_FALSE(directory.chat_template);
}

TEST_F(HfDirectoryTest, TakesTheTemplateInOrder) {
  folder_.write("chat_template.json", R"({"chat_template":"third"})");
  EXPECT_EQ(read().chat_template->source, "third");
  EXPECT_EQ(read().chat_template->file, "chat_template.json");
  folder_.write("tokenizer_config.json", R"({"chat_template":null})");
  EXPECT_EQ(read().chat_template->source, "third");
  folder_.write("tokenizer_config.json", R"({"chat_template":"second"})");
  EXPECT_EQ(read().chat_template->source, "second");
  folder_.write("tokenizer_config.json",
                R"({"chat_template":[{"name":"tool_use","template":"tools"},)"
                R"({"name":"default","template":"yes"}]})");
  EXPECT_EQ(read().chat_template->source, "yes");
  EXPECT_EQ(read().chat_template->tool_source, "tools");
  EXPECT_EQ(read().chat_template->file, "tokenizer_config.json");
  folder_.write("chat_template.jinja", "{{ first }}");
  EXPECT_EQ(read().chat_template->source, "{{ first }}");
  EXPECT_EQ(read().chat_template->file, "chat_template.jinja");
  EXPECT_EQ(read().chat_template->tool_source, "");
  std::filesystem::create_directory(folder_ / "additional_chat_templates");
  folder_.write("additional_chat_templates/tool_use.jinja", "{{ tools }}");
  EXPECT_EQ(read().chat_template->tool_source, "{{ tools }}");
}

TEST_F(HfDirectoryTest, NamesWhatIsWrong) {
  const std::string file = folder_ / "tokenizer_config.json";
  folder_.write("tokenizer_config.json", "{");
  EXPECT_THAT(error(), AllOf(HasSubstr(file), HasSubstr("not a JSON object")));
  folder_.write("tokenizer_config.json", R"({"chat_template":7})");
  EXPECT_THAT(error(), HasSubstr("neither text nor a list"));
  folder_.write("tokenizer_config.json", R"({"chat_template":[{"name":"rag","template":"x"}]})");
  EXPECT_THAT(error(), AllOf(HasSubstr("called default"), HasSubstr("rag")));
  folder_.write("tokenizer_config.json", R"({"chat_template":[3]})");
  EXPECT_THAT(error(), HasSubstr("no {name, template}"));
  folder_.write("tokenizer_config.json", std::string(200000, '['));
  EXPECT_THAT(error(), HasSubstr("not a JSON object"));
  std::filesystem::remove(folder_ / "config.json");
  EXPECT_THAT(error(), HasSubstr(folder_ / "config.json does not exist"));
}

}  // namespace
}  // namespace thaw::checkpoint
