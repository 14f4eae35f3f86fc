#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "cli/weights_document.h"
#include "engine/base/memory_map.h"
#include "engine/base/result.h"
#include "engine/checkpoint/stored_tensor.h"
#include "kvsnap/container_reader.h"
#include "kvsnap/file_io.h"

namespace thaw::cli {

/// The tensors of a .thaw file that `thaw freeze` wrote, mapped read-only; nothing is copied. The
/// tensors of several shards are put together in memory. Names, shapes and places are checked
/// against the file's regions before they are used, the metadata against its checksum; the weights
/// against theirs by verify().
class WeightsFile final : public checkpoint::TensorSource {
 public:
  /// Opens rank 0's file, and the others beside it that it names. `checks`: whether verify() does
  /// anything (THAW_VERIFY). Errors name the file: not there, no container, damaged, no metadata (a
  /// file of another program), a shard that is missing or of another model.
  static Result<WeightsFile> open(kvsnap::FileIo& io, const std::string& path,
                                  kvsnap::Verify checks = kvsnap::Verify::kChecksums);

  /// A file without metadata, which others wrote: `document` says what its regions hold, `padding`
  /// how many bytes lie behind the tensors of a region, by logical id.
  static Result<WeightsFile> open_described(kvsnap::ContainerReader reader,
                                            WeightsDocument document,
                                            const std::map<std::uint32_t, std::uint64_t>& padding,
                                            kvsnap::Verify checks);

  /// Of rank 0.
  const WeightsDocument& document() const { return document_; }

  const std::string& path() const override { return path_; }
  const std::vector<checkpoint::StoredTensor>& tensors() const override { return tensors_; }
  const checkpoint::StoredTensor* find_tensor(std::string_view name) const override;
  /// SHA-256 over all files, whatever they say of themselves.
  Hash128 digest() const override;
  Result<void> verify(ThreadPool& threads) const override;
  std::vector<std::string> files() const override;
  void release(const checkpoint::StoredTensor& tensor) const override;

 private:
  /// One rank's file.
  struct Shard {
    kvsnap::ContainerReader reader;
    Mapping mapping;
    WeightsDocument document;
    std::vector<std::span<const std::byte>> parts;  ///< of document.tensors, in their order
  };
  static Result<Shard> open_shard(kvsnap::FileIo& io, const std::string& path);
  static Result<Shard> make_shard(kvsnap::ContainerReader reader, WeightsDocument document,
                                  const std::map<std::uint32_t, std::uint64_t>& padding);
  Result<void> take_whole(const Shard& shard);
  Result<void> merge();
  Result<void> index();

  std::string path_;
  kvsnap::Verify checks_ = kvsnap::Verify::kChecksums;
  WeightsDocument document_;
  std::vector<Shard> shards_;
  Mapping merged_;  ///< of several shards
  std::vector<checkpoint::StoredTensor> tensors_;
  std::map<std::string_view, std::size_t> tensor_index_;
};

/// The metadata of a container, nothing where it has none. Errors: kDataLoss, kUnsupported.
Result<std::optional<WeightsDocument>> read_weights_document(const kvsnap::ContainerReader& reader,
                                                             ThreadPool& threads);

}  // namespace thaw::cli
