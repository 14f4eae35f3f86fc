#include "engine/checkpoint/model_location.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

#include "engine/checkpoint/gguf_split.h"
#include "engine/checkpoint/in_quotes.h"
#include "engine/checkpoint/text_file.h"

namespace thaw::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxRefBytes = 256;
constexpr std::size_t kMaxNamed = 8;  ///< files that a message lists

bool is_there(const fs::path& path) {
  std::error_code error;
  return fs::exists(path, error);
}

/// Names in a directory, sorted; none where it cannot be read.
std::vector<std::string> names_in(const fs::path& directory) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entries(directory, error);
  for (; !error && entries != fs::directory_iterator(); entries.increment(error))
    names.push_back(entries->path().filename());
  std::ranges::sort(names);
  return names;
}

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (std::size_t i = 0; i < std::min(names.size(), kMaxNamed); ++i)
    text += (i == 0 ? "" : ", ") + names[i];
  return names.size() > kMaxNamed ? text + ", ..." : text;
}

/// The GGUF models of a directory; of a split one the first part.
std::vector<std::string> gguf_models(const std::vector<std::string>& names) {
  std::vector<std::string> models;
  for (const std::string& name : names) {
    if (!name.ends_with(".gguf")) continue;
    const auto split = parse_split_name(name);
    if (!split || split->part == 1) models.push_back(name);
  }
  return models;
}

Error no_weights(const fs::path& directory, const std::vector<std::string>& names) {
  const auto is_pickled = [](const std::string& name) {
    return name.ends_with(".bin") || name.ends_with(".pth") || name.ends_with(".pt");
  };
  const auto pickled = std::ranges::find_if(names, is_pickled);
  const std::string wanted = "model.safetensors, model.safetensors.index.json or a .gguf file";
  if (pickled != names.end()) {
    return make_error(
        Errc::kUnsupported,
        directory.string() + ": its weights are pickled (" + *pickled +
            "), which is not read because loading a pickle runs what it holds; write them again "
            "with transformers' save_pretrained(), which makes model.safetensors");
  }
  return make_error(Errc::kNotFound, directory.string() + ": no model in this directory; " +
                                         wanted + " is looked for");
}

Result<ModelLocation> locate_in_directory(const fs::path& directory, std::string name) {
  const std::vector<std::string> names = names_in(directory);
  const auto has = [&](std::string_view file) {
    return std::ranges::find(names, file) != names.end();
  };
  const bool has_shards = std::ranges::any_of(names, [](const std::string& file) {
    return file.starts_with("model-") && file.ends_with(".safetensors");
  });
  if (has("model.safetensors") || has("model.safetensors.index.json")) {
    if (has("config.json")) {
      return ModelLocation{ModelKind::kHuggingFace, directory, std::move(name)};
    }
    return make_error(Errc::kNotFound, directory.string() +
                                           ": config.json is missing beside model.safetensors; was "
                                           "the model downloaded to the end?");
  }
  const std::vector<std::string> ggufs = gguf_models(names);
  if (ggufs.size() == 1)
    return ModelLocation{ModelKind::kGguf, directory / ggufs.front(), std::move(name)};
  if (ggufs.size() > 1) {
    return make_error(
        Errc::kInvalidArgument,
        directory.string() + ": several models, name the file of one: " + listed(ggufs));
  }
  if (has_shards) {
    return make_error(Errc::kNotFound,
                      directory.string() +
                          ": model.safetensors.index.json is missing beside its shards; was the "
                          "model downloaded to the end?");
  }
  return no_weights(directory, names);
}

/// "org/name@revision", or a name alone as the oldest models have.
struct HubName {
  std::string repository;
  std::string revision;  ///< empty: the default one
};

bool is_hub_word(std::string_view text) {
  return !text.empty() && text.size() <= 96 && text.front() != '.' && text.front() != '-' &&
         std::ranges::all_of(text, [](unsigned char c) {
           return std::isalnum(c) != 0 || c == '-' || c == '_' || c == '.';
         });
}

/// A branch, tag or commit, "refs/pr/3" too; nothing that leads out of the cache.
bool is_revision(std::string_view text) {
  while (true) {
    const std::size_t slash = text.find('/');
    if (!is_hub_word(text.substr(0, slash))) return false;
    if (slash == std::string_view::npos) return true;
    text.remove_prefix(slash + 1);
  }
}

std::optional<HubName> parse_hub_name(const std::string& model) {
  const std::size_t at = model.find('@');
  HubName name{model.substr(0, at), at == std::string::npos ? "" : model.substr(at + 1)};
  if (at != std::string::npos && !is_revision(name.revision)) return std::nullopt;
  const std::size_t slash = name.repository.find('/');
  const std::string_view repository = name.repository;
  if (slash == std::string::npos ? !is_hub_word(repository)
                                 : !is_hub_word(repository.substr(0, slash)) ||
                                       !is_hub_word(repository.substr(slash + 1))) {
    return std::nullopt;
  }
  return name;
}

std::string download_command(const HubName& name) {
  return "`hf download " + name.repository +
         (name.revision.empty() ? "" : " --revision " + name.revision) + "`";
}

/// Folder of the cache for a repository.
fs::path repository_folder(const HubName& name, const std::string& hub_cache) {
  std::string folder = "models--" + name.repository;
  if (const std::size_t slash = folder.find('/'); slash != std::string::npos)
    folder.replace(slash, 1, "--");
  return fs::path(hub_cache) / folder;
}

/// The snapshot of a revision: a name under refs/ holds a commit, or it is one itself.
Result<fs::path> snapshot_of(const fs::path& repository, const HubName& name) {
  const std::string revision = name.revision.empty() ? "main" : name.revision;
  std::string commit = revision;
  if (const fs::path ref = repository / "refs" / revision; is_there(ref)) {
    auto text = read_text_file(ref, kMaxRefBytes);
    if (!text) return std::move(text).error();
    while (!text->empty() && std::isspace(static_cast<unsigned char>(text->back())) != 0)
      text->pop_back();
    if (!is_hub_word(*text)) {
      return make_error(Errc::kDataLoss,
                        ref.string() + " holds " + in_quotes(*text) + "; a commit is right");
    }
    commit = *text;
  }
  fs::path snapshot = repository / "snapshots" / commit;
  if (is_there(snapshot)) return snapshot;
  const std::vector<std::string> revisions = names_in(repository / "refs");
  return make_error(Errc::kNotFound,
                    name.repository + ": revision " + in_quotes(revision) + " is not in " +
                        repository.string() +
                        (revisions.empty() ? "" : ", which has " + listed(revisions)) + "; " +
                        download_command(name) + " fetches it");
}

Result<ModelLocation> locate_in_cache(const HubName& name, const std::string& hub_cache) {
  const fs::path repository = repository_folder(name, hub_cache);
  const auto snapshot = snapshot_of(repository, name);
  if (!snapshot) return snapshot.error();
  auto found = locate_in_directory(*snapshot, name.repository);
  if (found || found.error().code != Errc::kNotFound) return found;
  Error error = std::move(found).error();
  error.message += "; " + download_command(name) + " fetches what is missing";
  return error;
}

}  // namespace

Result<ModelLocation> locate_model(const std::string& model, const std::string& hub_cache) {
  std::error_code error;
  const fs::path path(model);
  if (fs::is_directory(path, error)) {
    // "dir/" and "." have names too.
    std::string name = fs::weakly_canonical(path, error).filename();
    return locate_in_directory(path, name.empty() ? "model" : std::move(name));
  }
  if (is_there(path)) {
    if (path.extension() == ".safetensors" || path.filename() == "config.json") {
      return make_error(Errc::kInvalidArgument,
                        model + " is one file of a Hugging Face model; name its directory");
    }
    if (path.extension() == ".thaw")
      return ModelLocation{ModelKind::kThaw, model, path.stem().string()};
    const auto split = parse_split_name(model);
    return ModelLocation{ModelKind::kGguf, model,
                         split ? fs::path(split->stem).filename().string() : path.stem().string()};
  }
  const auto hub_name = parse_hub_name(model);
  const bool has_owner = model.find('/') != std::string::npos;
  if (hub_name && is_there(repository_folder(*hub_name, hub_cache)))
    return locate_in_cache(*hub_name, hub_cache);
  // What ends like a file was meant as one.
  if (!hub_name || !has_owner || model.ends_with(".gguf") || model.ends_with(".safetensors") ||
      model.ends_with(".thaw"))
    return make_error(Errc::kNotFound, model + ": no such file or directory");
  return make_error(Errc::kNotFound,
                    model + ": no such file or directory, and not in the Hugging Face cache " +
                        hub_cache + "; " + download_command(*hub_name) + " fetches it");
}

}  // namespace thaw::checkpoint
