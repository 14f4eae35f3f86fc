// Containers of weights (16 regions) and of KV (a region for each block, checksums and token ids)
// against raw writes and reads of the same size in the same directory, taken in turns in the same
// run. Arguments: 1 past the page cache, 0 through it; threads. Files of KV are written by the four
// threads of their writer.

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <benchmark/benchmark.h>

#include "engine/base/hash.h"
#include "kvsnap/aligned_buffer.h"
#include "kvsnap/container_reader.h"
#include "kvsnap/container_writer.h"
#include "kvsnap/kv_file.h"

namespace thaw::kvsnap {
namespace {

constexpr std::size_t kBytes = std::size_t{512} << 20;
constexpr std::size_t kRegions = 16;
constexpr std::size_t kChunk = std::size_t{4} << 20;

std::string path_of(const char* name) {
  const char* directory = std::getenv("THAW_BENCH_DIR");
  return std::string(directory == nullptr ? "." : directory) + "/" + name;
}

double seconds(const std::function<void()>& work) {
  const auto started = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

void must(bool done) {
  if (!done) throw std::runtime_error("the bench's I/O failed");
}

/// As many threads as asked for, each with every so-manieth chunk: dd, several at once.
void raw(bool is_direct, bool writes, int num_threads, std::span<std::byte> memory) {
  const int flags = (writes ? O_RDWR | O_CREAT | O_TRUNC : O_RDONLY) | (is_direct ? O_DIRECT : 0);
  const int fd = ::open(path_of("bench.raw").c_str(), flags, 0644);
  must(fd >= 0);
  if (writes) must(::fallocate(fd, 0, 0, kBytes) == 0);
  {
    std::vector<std::jthread> threads;
    for (int thread = 0; thread < num_threads; ++thread) {
      threads.emplace_back([=] {
        const auto stride = static_cast<std::size_t>(num_threads) * kChunk;
        for (std::size_t at = static_cast<std::size_t>(thread) * kChunk; at < kBytes;
             at += stride) {
          const ssize_t done =
              writes ? ::pwrite(fd, memory.data() + at, kChunk, static_cast<off_t>(at))
                     : ::pread(fd, memory.data() + at, kChunk, static_cast<off_t>(at));
          must(done == static_cast<ssize_t>(kChunk));
        }
      });
    }
  }
  if (writes) must(::fsync(fd) == 0);
  ::close(fd);
}

/// Neither side finds the other's pages, nor its own.
void forget(const char* name) {
  const int fd = ::open(path_of(name).c_str(), O_RDONLY);
  ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  ::close(fd);
}

void write_container(IoMode mode, int num_threads, std::span<const std::byte> memory) {
  ContainerWriterOptions options;
  options.num_regions = kRegions;
  options.payload_bytes = kBytes;
  options.num_threads = num_threads;
  const auto writer =
      std::move(ContainerWriter::create(system_io(mode), path_of("bench.thaw"), options)).value();
  for (std::size_t i = 0; i < kRegions; ++i) {
    const auto payload = memory.subspan(i * (kBytes / kRegions), kBytes / kRegions);
    must(writer->add(RegionKind::kWeights, static_cast<std::uint32_t>(i), {payload}).has_value());
  }
  must(writer->commit().has_value());
}

void read_container(IoMode mode, ThreadPool& threads, std::span<std::byte> memory) {
  const auto reader = ContainerReader::open(system_io(mode), path_of("bench.thaw"));
  must(reader.has_value());
  for (std::size_t i = 0; i < kRegions; ++i) {
    const auto out = memory.subspan(i * (kBytes / kRegions), kBytes / kRegions);
    must(reader->read(reader->regions()[i], out, threads).has_value());
  }
}

constexpr std::size_t kBlockBytes = 368640;  // 16 tokens of a model of 135M parameters, in bf16
constexpr std::size_t kBlocks = kBytes / kBlockBytes;

template <typename Byte>
std::vector<std::span<Byte>> blocks_of(std::span<Byte> memory) {
  std::vector<std::span<Byte>> blocks;
  for (std::size_t i = 0; i < kBlocks; ++i)
    blocks.push_back(memory.subspan(i * kBlockBytes, kBlockBytes));
  return blocks;
}

void write_kv(IoMode mode, std::span<const std::byte> memory) {
  KvDocument document;
  document.cache_root = make_cache_root(document.engine_fingerprint, "", "", "");
  document.kv_layout = "bf16";
  document.block_size = kBlockSize;
  document.block_bytes = kBlockBytes;
  for (std::size_t i = 0; i < kBlocks * kBlockSize; ++i)
    document.token_ids.push_back(static_cast<TokenId>(i * 31 % 50000));
  must(write_kv_file(system_io(mode), path_of("bench.thaw"), document, blocks_of(memory))
           .has_value());
}

void read_kv(IoMode mode, ThreadPool& threads, std::span<std::byte> memory) {
  const auto file = KvFile::open(system_io(mode), path_of("bench.thaw"), threads);
  must(file.has_value());
  must(file->read(blocks_of(memory), threads).has_value());
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

void report(benchmark::State& state, const std::vector<double>& ours,
            const std::vector<double>& raws) {
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * kBytes));
  state.counters["raw_gb_s"] = static_cast<double>(kBytes) / 1e9 / median(raws);
  state.counters["container_gb_s"] = static_cast<double>(kBytes) / 1e9 / median(ours);
  state.counters["share_of_raw"] = median(raws) / median(ours);
}

enum class Holds { kWeights, kKv };

void Container(benchmark::State& state, Holds holds, bool writes) {
  const bool is_direct = state.range(0) != 0;
  const IoMode mode = is_direct ? IoMode::kDirect : IoMode::kBuffered;
  const int num_threads = static_cast<int>(state.range(1));
  const AlignedBuffer buffer(kBytes);
  const auto memory = buffer.bytes();
  for (std::size_t i = 0; i < kBytes; ++i)
    memory[i] = static_cast<std::byte>(i * 2654435761U >> 13);
  ThreadPool threads(num_threads);
  const auto write = [&] {
    if (holds == Holds::kKv) return write_kv(mode, memory);
    write_container(mode, num_threads, memory);
  };
  const auto read = [&] {
    if (holds == Holds::kKv) return read_kv(mode, threads, memory);
    read_container(mode, threads, memory);
  };
  if (!writes) {
    raw(is_direct, true, num_threads, memory);
    write();
  }
  std::vector<double> ours;
  std::vector<double> raws;
  for (auto _ : state) {
    if (!writes) forget("bench.raw");
    raws.push_back(seconds([&] { raw(is_direct, writes, num_threads, memory); }));
    if (!writes) forget("bench.thaw");
    ours.push_back(seconds([&] { writes ? write() : read(); }));
    state.SetIterationTime(ours.back());
  }
  report(state, ours, raws);
  std::filesystem::remove(path_of("bench.raw"));
  std::filesystem::remove(path_of("bench.thaw"));
  std::filesystem::remove(path_of("bench.thaw.meta"));
}

void arguments(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"direct", "threads"})
      ->Unit(benchmark::kMillisecond)
      ->UseManualTime()
      ->Iterations(9);
  for (const int is_direct : {1, 0})
    for (const int threads : {1, 2, 4})
      bench->Args({is_direct, threads});
}
BENCHMARK_CAPTURE(Container, write, Holds::kWeights, true)->Apply(arguments);
BENCHMARK_CAPTURE(Container, read, Holds::kWeights, false)->Apply(arguments);
BENCHMARK_CAPTURE(Container, write_kv, Holds::kKv, true)->Apply(arguments);
BENCHMARK_CAPTURE(Container, read_kv, Holds::kKv, false)->Apply(arguments);

}  // namespace
}  // namespace thaw::kvsnap

BENCHMARK_MAIN();
