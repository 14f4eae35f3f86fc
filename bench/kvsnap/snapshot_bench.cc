#include <cstring>
#include <memory>
#include <vector>

#include <benchmark/benchmark.h>

#include "engine/base/crc32c.h"
#include "kvsnap/arena.h"
#include "kvsnap/snapshot_reader.h"
#include "kvsnap/snapshot_writer.h"

namespace thaw::kvsnap {
namespace {

// 2,000 tokens of SmolLM2-135M in bf16: 125 blocks, 46 MB.
constexpr std::uint64_t kBlockBytes = 368640;
constexpr std::size_t kNumBlocks = 125;
constexpr std::size_t kBytes = kNumBlocks * kBlockBytes;

// Both sides touched before anything is timed: the budgets are for hot pages.
struct Fixture {
  explicit Fixture(int num_threads, bool warm = true) : threads(num_threads) {
    for (std::size_t i = 0; i < kBytes; ++i)
      kv.data()[i] = static_cast<std::byte>(i * 2654435761U >> 13);
    manifest = {{},
                format.kv_layout,
                16,
                kBlockBytes,
                std::vector<TokenId>(16 * kNumBlocks),
                0,
                1,
                arena.lease_for_writing({}, kNumBlocks, kBlockBytes).value().extents};
    for (std::size_t i = 0; i < kNumBlocks; ++i)
      blocks.push_back(kv.data() + (i * 7 % kNumBlocks) * kBlockBytes);
    if (warm) write();
  }

  void write() {
    SnapshotWriter writer(view, *pipeline, format);
    const std::vector<const std::byte*> sources(blocks.begin(), blocks.end());
    manifest = writer.finish(writer.start(manifest, {}, sources).value()).value();
  }
  void read() {
    SnapshotReader reader(view, *pipeline, format);
    reader.finish(reader.start(manifest, {}, blocks).value()).value();
  }

  ThreadPool threads;
  std::unique_ptr<CopyPipeline> pipeline = make_cpu_copy_pipeline(threads);
  KvFormat format{"bench", 16, kBlockBytes, 0, 1};
  Arena arena = std::move(Arena::create(std::size_t{64} << 20)).value();
  ArenaView view = std::move(ArenaView::map(arena.fd())).value();
  UniqueFd kv_fd = std::move(create_memfd("bench-kv", kBytes)).value();
  Mapping kv = std::move(map_fd(kv_fd.get(), kBytes, MapAccess::kReadWrite)).value();
  std::vector<std::byte*> blocks;
  Manifest manifest;
};

void report(benchmark::State& state) {
  state.SetBytesProcessed(static_cast<std::int64_t>(state.iterations() * kBytes));
}

void snapshot(benchmark::State& state) {
  Fixture fixture(static_cast<int>(state.range(0)));
  for (auto _ : state)
    fixture.write();
  report(state);
}

void restore(benchmark::State& state) {
  Fixture fixture(static_cast<int>(state.range(0)));
  for (auto _ : state)
    fixture.read();
  report(state);
}

// The first snapshot in an arena and the first restore by another process, whose mapping is new:
// page faults on top of the copies, unless the arena's pages were warmed.
void first_snapshot_and_restore(benchmark::State& state) {
  for (auto _ : state) {
    state.PauseTiming();
    auto fixture = std::make_unique<Fixture>(2, false);
    if (state.range(0) != 0) fixture->arena.warm_in_background().value();
    fixture->arena.wait_until_warm();
    state.ResumeTiming();
    fixture->write();
    fixture->view = std::move(ArenaView::map(fixture->arena.fd())).value();
    fixture->read();
    state.PauseTiming();
    fixture.reset();
    state.ResumeTiming();
  }
}

// What one core can do: the ceilings the two above are made of.
void plain_memcpy(benchmark::State& state) {
  Fixture fixture(1);
  for (auto _ : state) {
    for (std::size_t i = 0; i < kNumBlocks; ++i)
      std::memcpy(fixture.view.bytes(fixture.manifest.extents[0]).data() + i * kBlockBytes,
                  fixture.blocks[i], kBlockBytes);
  }
  report(state);
}

void checksum(benchmark::State& state) {
  Fixture fixture(1);
  for (auto _ : state)
    benchmark::DoNotOptimize(crc32c(fixture.kv.bytes()));
  report(state);
}

BENCHMARK(snapshot)->Arg(1)->Arg(2)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(restore)->Arg(1)->Arg(2)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(first_snapshot_and_restore)
    ->ArgName("warmed")
    ->Arg(0)
    ->Arg(1)
    ->Iterations(5)
    ->Unit(benchmark::kMillisecond)
    ->UseRealTime();
BENCHMARK(plain_memcpy)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(checksum)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace thaw::kvsnap

BENCHMARK_MAIN();
