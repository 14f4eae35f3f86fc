#include "coalescer/http/session_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <memory>

#include "coalescer/openai/session_json.h"
#include "engine/base/file.h"

namespace thaw::coalescer {
namespace {

constexpr std::string_view kExports = "/exports/";

Result<void> make_directory(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) return {};
  return io_error("cannot make the directory " + path, errno);
}

}  // namespace

Result<SessionFiles> SessionFiles::open(const std::string& directory) {
  std::error_code ignored;
  const std::string parent = std::filesystem::path(directory).parent_path().string();
  if (!parent.empty()) std::filesystem::create_directories(parent, ignored);
  if (auto made = make_directory(directory); !made) return made.error();
  struct stat facts {};
  if (::stat(directory.c_str(), &facts) != 0 || !S_ISDIR(facts.st_mode)) {
    return make_error(Errc::kInvalidArgument, "--session-dir " + directory + " is no directory");
  }
  if (::access(directory.c_str(), R_OK | W_OK | X_OK) != 0)
    return io_error("--session-dir " + directory + " cannot be written to", errno);
  if (auto made = make_directory(directory + "/exports"); !made) return made.error();
  const std::string lock_path = directory + "/lock";
  UniqueFd lock(::open(lock_path.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600));
  if (!lock) return io_error("cannot open " + lock_path, errno);
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    return make_error(Errc::kUnavailable, "--session-dir " + directory +
                                              " is used by another server; give each its own");
  }
  return SessionFiles(directory, std::move(lock));
}

std::string SessionFiles::export_document_path(const std::string& name) const {
  return directory_ + std::string(kExports) + name + ".json";
}

std::string SessionFiles::export_kv_path(const std::string& name) const {
  return directory_ + std::string(kExports) + name + ".thawkv";
}

bool SessionFiles::exists(const std::string& path) {
  struct stat facts {};
  return ::lstat(path.c_str(), &facts) == 0;
}

bool SessionFiles::is_file(const std::string& path) {
  struct stat facts {};
  return ::lstat(path.c_str(), &facts) == 0 && S_ISREG(facts.st_mode);
}

Result<void> SessionFiles::write(const std::string& path, std::string_view text) const {
  if (exists(path) && !is_file(path))
    return make_error(Errc::kUnsupported, path + " is there and is no plain file");
  return replace_file(path, text);
}

bool SessionFiles::share_kv(const std::string& from, const std::string& to) {
  // The description first: whoever sees the file finds it.
  for (const char* suffix : {".meta", ""}) {
    const std::string source = from + suffix;
    const std::string name = to + suffix;
    const std::string incomplete = name + ".linked";
    ::unlink(incomplete.c_str());
    if (!is_file(source) || ::link(source.c_str(), incomplete.c_str()) != 0) return false;
    const bool renamed = ::rename(incomplete.c_str(), name.c_str()) == 0;
    ::unlink(incomplete.c_str());  // still there where both were one file already
    if (!renamed) return false;
  }
  return true;
}

Result<std::string> SessionFiles::read(const std::string& path, std::uint64_t max_bytes) const {
  const std::string name = std::filesystem::path(path).filename().string();
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd) {
    if (errno == ENOENT) return make_error(Errc::kNotFound, "there is no file " + name);
    if (errno == ELOOP) return make_error(Errc::kUnsupported, name + " is a link, no plain file");
    return io_error("cannot open " + name, errno);
  }
  struct stat facts {};
  if (::fstat(fd.get(), &facts) != 0) return io_error("cannot look at " + name, errno);
  if (!S_ISREG(facts.st_mode)) return make_error(Errc::kUnsupported, name + " is no plain file");
  if (static_cast<std::uint64_t>(facts.st_size) > max_bytes) {
    return make_error(Errc::kUnsupported, name + " has " + std::to_string(facts.st_size) +
                                              " bytes; at most " + std::to_string(max_bytes) +
                                              " are read");
  }
  std::string text(static_cast<std::size_t>(facts.st_size), '\0');
  std::size_t done = 0;
  while (done < text.size()) {
    const ssize_t count = ::read(fd.get(), text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return io_error("cannot read " + name, errno);
    if (count == 0) break;
    done += static_cast<std::size_t>(count);
  }
  text.resize(done);
  return text;
}

Result<std::vector<std::string>> SessionFiles::list() const {
  const std::unique_ptr<DIR, int (*)(DIR*)> opened(::opendir(directory_.c_str()), ::closedir);
  if (opened == nullptr) return io_error("cannot list " + directory_, errno);
  constexpr std::string_view kEnding = ".json";
  std::vector<std::string> ids;
  while (const dirent* entry = ::readdir(opened.get())) {
    const std::string_view name = entry->d_name;
    if (name.size() <= kEnding.size() || !name.ends_with(kEnding)) continue;
    const std::string id(name.substr(0, name.size() - kEnding.size()));
    if (is_session_id(id)) ids.push_back(id);
  }
  std::ranges::sort(ids);
  return ids;
}

void SessionFiles::remove(const std::string& id) const {
  for (const std::string& path : {document_path(id), kv_path(id), kv_path(id) + ".meta"})
    ::unlink(path.c_str());
}

}  // namespace thaw::coalescer
