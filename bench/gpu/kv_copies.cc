#include "bench/gpu/kv_copies.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <thread>

#include <nlohmann/json.hpp>

#include "bench/gpu/timing.h"
#include "engine/base/crc32c.h"
#include "engine/base/memory_map.h"
#include "engine/cuda/buffer.h"
#include "engine/cuda/check.h"
#include "engine/cuda/device_info.h"
#include "engine/cuda/vmm.h"
#include "engine/model/cuda/device_image.h"
#include "engine/model/cuda/digest.h"
#include "kvsnap/arena.h"
#include "kvsnap/copy_pipeline_cuda.h"
#include "kvsnap/page_warmer.h"
#include "kvsnap/pinned_range.h"
#include "kvsnap/snapshot_reader.h"
#include "kvsnap/snapshot_writer.h"

namespace thaw::bench {
namespace {

using Clock = std::chrono::steady_clock;
using kvsnap::PinnedRange;

std::vector<double> sorted_times(int repeats, const std::function<void()>& work) {
  work();  // warms up
  std::vector<double> times;
  for (int i = 0; i < repeats; ++i)
    times.push_back(milliseconds(work));
  std::sort(times.begin(), times.end());
  return times;
}

double median_ms(int repeats, const std::function<void()>& work) {
  return sorted_times(repeats, work)[static_cast<std::size_t>(repeats / 2)];
}

/// An arena and a device's KV memory with one snapshot of `options`.
class Fixture {
 public:
  explicit Fixture(const KvCopyOptions& options)
      : options_(options),
        arena_(std::move(kvsnap::Arena::create(bytes() + (64 << 20))).value()),
        view_(std::move(kvsnap::ArenaView::map(arena_.fd())).value()),
        kv_(cuda::VmmAllocation::create(0, bytes() * 2).value()),
        format_{"bench", 16, options.block_bytes, 0, 1} {
    arena_.warm_in_background().value();
    arena_.wait_until_warm();
    pinned_ = PinnedRange::pin(view_.memory()).value();
    // Not zeros: no hardware may find a shortcut.
    std::vector<std::byte> pattern(options.block_bytes);
    for (std::size_t i = 0; i < pattern.size(); ++i)
      pattern[i] = static_cast<std::byte>(i * 2654435761U >> 13);
    for (std::size_t i = 0; i < 2 * options.num_blocks; ++i)
      cuda::check(cudaMemcpy(kv_.data() + i * options.block_bytes, pattern.data(), pattern.size(),
                             cudaMemcpyHostToDevice));
    manifest_ = {
        {},
        format_.kv_layout,
        16,
        options.block_bytes,
        std::vector<TokenId>(16 * options.num_blocks),
        0,
        1,
        arena_.lease_for_writing({}, options.num_blocks, options.block_bytes).value().extents};
  }

  std::size_t bytes() const { return options_.num_blocks * options_.block_bytes; }
  const cuda::Stream& compute() const { return compute_; }
  std::span<std::byte> arena_memory() const { return view_.memory(); }

  void use(int threads, bool neighbours) {
    pipeline_.reset();
    pipeline_ =
        kvsnap::make_cuda_copy_pipeline(compute_, {.num_threads = threads, .chunks = {}}).value();
    blocks_.clear();
    for (std::size_t i = 0; i < options_.num_blocks; ++i)
      blocks_.push_back(kv_.data() + (neighbours ? i : 2 * (i * 7 % options_.num_blocks)) *
                                         options_.block_bytes);
  }
  void snapshot() {
    kvsnap::SnapshotWriter writer(view_, *pipeline_, format_);
    const std::vector<const std::byte*> sources(blocks_.begin(), blocks_.end());
    manifest_ = writer.finish(writer.start(manifest_, {}, sources).value()).value();
  }
  void restore() {
    kvsnap::SnapshotReader reader(view_, *pipeline_, format_);
    reader.finish(reader.start(manifest_, {}, blocks_).value()).value();
  }
  /// Median milliseconds of the bare copies of the blocks in use.
  double copies_alone(bool to_device, int num_streams) {
    const std::vector<cuda::Stream> streams(static_cast<std::size_t>(num_streams));
    return median_ms(options_.repeats, [&] {
      std::byte* at = view_.bytes(manifest_.extents[0]).data();
      for (std::size_t i = 0; i < blocks_.size(); ++i, at += options_.block_bytes) {
        cuda::check(cudaMemcpyAsync(to_device ? blocks_[i] : at, to_device ? at : blocks_[i],
                                    options_.block_bytes, cudaMemcpyDefault,
                                    streams[i % streams.size()].view().get()));
      }
      for (const cuda::Stream& stream : streams)
        stream.synchronize();
    });
  }
  /// Calls `beside` while a snapshot is under way, until it is done.
  void snapshot_while(const std::function<void()>& beside) {
    kvsnap::SnapshotWriter writer(view_, *pipeline_, format_);
    const std::vector<const std::byte*> sources(blocks_.begin(), blocks_.end());
    auto pending = writer.start(manifest_, {}, sources).value();
    beside();
    manifest_ = writer.finish(std::move(pending)).value();
  }

 private:
  KvCopyOptions options_;
  cuda::Stream compute_;
  kvsnap::Arena arena_;
  kvsnap::ArenaView view_;
  PinnedRange pinned_;
  cuda::VmmAllocation kv_;
  kvsnap::KvFormat format_;
  kvsnap::Manifest manifest_;
  std::vector<std::byte*> blocks_;
  std::unique_ptr<kvsnap::CopyPipeline> pipeline_;
};

double checksum_rate(std::span<const std::byte> memory) {
  std::uint32_t sum = 0;
  const double ms = median_ms(5, [&] { sum ^= crc32c(memory); });
  return static_cast<double>(memory.size()) / (ms * 1e-3) + (sum == 1 ? 1e-9 : 0);
}

/// A kernel that reads 16 GiB, as a decode step reads its weights; milliseconds.
double compute_time(const Fixture& fixture, const cuda::DeviceBuffer<std::byte>& buffer,
                    const cuda::DeviceBuffer<std::uint64_t>& digests) {
  cuda::Event start(cuda::Event::Timing::kOn);
  cuda::Event stop(cuda::Event::Timing::kOn);
  start.record(fixture.compute());
  model::digest::enqueue(buffer.data(), buffer.size(), model::kDigestChunkBytes, digests.data(),
                         fixture.compute());
  stop.record(fixture.compute());
  stop.synchronize();
  return stop.milliseconds_since(start);
}

/// Median microseconds of 100 copies of 4 bytes, each waited for.
double small_copy_time(const Fixture& fixture, const cuda::DeviceBuffer<std::uint64_t>& from,
                       const cuda::PinnedBuffer<std::uint64_t>& to) {
  std::vector<double> times;
  for (int i = 0; i < 100; ++i) {
    const auto start = Clock::now();
    cuda::copy_to_host<std::uint64_t>(from.span().subspan(0, 1), to.span(), fixture.compute());
    fixture.compute().synchronize();
    times.push_back(milliseconds_since(start) * 1e3);
  }
  std::sort(times.begin(), times.end());
  return times[50];
}

void measure_compute(Fixture& fixture, KvCopyFigures& figures) {
  const cuda::DeviceBuffer<std::byte> buffer(std::size_t{16} << 30, fixture.compute());
  const cuda::DeviceBuffer<std::uint64_t> digests(buffer.size() / model::kDigestChunkBytes,
                                                  fixture.compute());
  const cuda::PinnedBuffer<std::uint64_t> one(1);
  std::vector<double> times[4];
  compute_time(fixture, buffer, digests);
  for (int i = 0; i < 9; ++i) {
    times[0].push_back(compute_time(fixture, buffer, digests));
    fixture.snapshot_while([&] { times[1].push_back(compute_time(fixture, buffer, digests)); });
    times[2].push_back(small_copy_time(fixture, digests, one));
    fixture.snapshot_while([&] { times[3].push_back(small_copy_time(fixture, digests, one)); });
  }
  for (auto& series : times)
    std::sort(series.begin(), series.end());
  figures.compute_alone_ms = times[0][4];
  figures.compute_beside_snapshots_ms = times[1][4];
  figures.small_copy_alone_us = times[2][4];
  figures.small_copy_beside_snapshots_us = times[3][4];
}

PinnedPages measure_pages(const std::string& name, std::span<std::byte> memory,
                          const std::function<void()>& take, const cuda::Stream& stream) {
  PinnedPages figures{name, memory.size()};
  auto start = Clock::now();
  take();
  figures.take_ms = milliseconds_since(start);
  start = Clock::now();
  const PinnedRange pinned = PinnedRange::pin(memory).value();
  figures.pin_ms = milliseconds_since(start);
  const cuda::DeviceBuffer<std::byte> device(memory.size(), stream);
  const auto rate = [&](bool to_device) {
    const double ms = median_ms(5, [&] {
      if (to_device)
        cuda::copy_to_device<std::byte>(memory, device, stream);
      else
        cuda::copy_to_host<std::byte>(device, memory, stream);
      stream.synchronize();
    });
    return static_cast<double>(memory.size()) / (ms * 1e-3);
  };
  figures.to_device_bytes_per_second = rate(true);
  figures.to_host_bytes_per_second = rate(false);
  return figures;
}

std::vector<PinnedPages> measure_all_pages(std::size_t bytes, const cuda::Stream& stream) {
  std::vector<PinnedPages> all;
  const auto touch = [](std::span<std::byte> memory) {
    for (std::size_t at = 0; at < memory.size(); at += 4096)
      memory[at] = std::byte{1};
  };
  void* reserved = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
  if (reserved != MAP_FAILED) {
    const Mapping mapping(static_cast<std::byte*>(reserved), bytes);
    all.push_back(measure_pages(
        "reserved 2 MiB", mapping.bytes(), [&] { touch(mapping.bytes()); }, stream));
  }
  const auto shared = [&](const std::string& name, bool collapse) {
    const UniqueFd fd = create_memfd("bench-pages", bytes).value();
    const Mapping mapping = kvsnap::map_on_huge_boundary(fd.get(), bytes).value();
    (void)::madvise(mapping.data(), bytes, collapse ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    all.push_back(measure_pages(
        name, mapping.bytes(),
        [&] {
          if (collapse)
            kvsnap::PageWarmer::start(fd.get()).value().wait();
          else
            touch(mapping.bytes());
        },
        stream));
  };
  shared("collapsed", true);
  shared("4 KiB", false);
  return all;
}

}  // namespace

KvCopyFigures measure_kv_copies(const KvCopyOptions& options) {
  KvCopyFigures figures;
  {
    Fixture fixture(options);
    figures.bytes = fixture.bytes();
    const cuda::CopyRates rates =
        cuda::measure_copy_rates(figures.bytes, options.repeats, fixture.compute()).value();
    figures.ceiling_to_device = rates.to_device;
    figures.ceiling_to_host = rates.to_host;
    for (const int threads : options.checksum_threads) {
      for (const bool neighbours : {false, true}) {
        fixture.use(threads, neighbours);
        const auto snapshots = sorted_times(options.repeats, [&] { fixture.snapshot(); });
        const auto restores = sorted_times(options.repeats, [&] { fixture.restore(); });
        const auto middle = static_cast<std::size_t>(options.repeats / 2);
        figures.times.push_back({threads, neighbours, snapshots[middle], restores[middle],
                                 snapshots.back(), restores.back()});
      }
    }
    for (const int streams : {1, 2}) {
      fixture.use(1, false);
      figures.blocks_to_host_ms[streams - 1] = fixture.copies_alone(false, streams);
      figures.blocks_to_device_ms[streams - 1] = fixture.copies_alone(true, streams);
    }
    fixture.use(options.checksum_threads.back(), false);
    figures.checksum_bytes_per_second = checksum_rate(fixture.arena_memory().first(figures.bytes));
    measure_compute(fixture, figures);
  }
  const cuda::Stream stream;
  figures.pages = measure_all_pages(std::size_t{1} << 30, stream);
  return figures;
}

std::string to_json(const KvCopyFigures& figures) {
  using Json = nlohmann::ordered_json;
  const auto bytes = static_cast<double>(figures.bytes);
  Json times = Json::array();
  for (const KvCopyTimes& t : figures.times) {
    times.push_back({{"checksum_threads", t.checksum_threads},
                     {"neighbours", t.neighbours},
                     {"snapshot_ms", t.snapshot_ms},
                     {"snapshot_share", bytes / (t.snapshot_ms * 1e-3) / figures.ceiling_to_host},
                     {"restore_ms", t.restore_ms},
                     {"restore_share", bytes / (t.restore_ms * 1e-3) / figures.ceiling_to_device},
                     {"snapshot_worst_ms", t.snapshot_worst_ms},
                     {"restore_worst_ms", t.restore_worst_ms}});
  }
  Json pages = Json::array();
  for (const PinnedPages& p : figures.pages) {
    pages.push_back({{"pages", p.pages},
                     {"bytes", p.bytes},
                     {"take_ms", p.take_ms},
                     {"pin_ms", p.pin_ms},
                     {"to_device_GB_per_s", p.to_device_bytes_per_second * 1e-9},
                     {"to_host_GB_per_s", p.to_host_bytes_per_second * 1e-9}});
  }
  const Json all = {{"bytes", figures.bytes},
                    {"copy_engine_to_device_GB_per_s", figures.ceiling_to_device * 1e-9},
                    {"copy_engine_to_host_GB_per_s", figures.ceiling_to_host * 1e-9},
                    {"checksum_GB_per_s_one_thread", figures.checksum_bytes_per_second * 1e-9},
                    {"blocks_to_host_ms_1_and_2_streams", figures.blocks_to_host_ms},
                    {"blocks_to_device_ms_1_and_2_streams", figures.blocks_to_device_ms},
                    {"small_copy_alone_us", figures.small_copy_alone_us},
                    {"small_copy_beside_snapshots_us", figures.small_copy_beside_snapshots_us},
                    {"compute_alone_ms", figures.compute_alone_ms},
                    {"compute_beside_snapshots_ms", figures.compute_beside_snapshots_ms},
                    {"copies", times},
                    {"pages", pages}};
  return all.dump(1);
}

}  // namespace thaw::bench
