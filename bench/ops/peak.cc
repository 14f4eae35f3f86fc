#include "bench/ops/peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <vector>

#include "engine/base/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace thaw::bench {
namespace {

using Clock = std::chrono::steady_clock;
constexpr int kTries = 7;

template <typename Body>
double best_seconds(ThreadPool& pool, const Body& body) {
  double best = 1e9;
  for (int i = 0; i < kTries; ++i) {
    const auto start = Clock::now();
    pool.parallel_for(pool.num_threads(), body);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

#if defined(__x86_64__)
constexpr std::int64_t kRounds = 400000;
constexpr int kChains = 12;

__attribute__((target("avx512f,avx512vnni"))) int int8_rounds() {
  __m512i acc[kChains];
  for (int c = 0; c < kChains; ++c)
    acc[c] = _mm512_set1_epi32(c);
  const __m512i a = _mm512_set1_epi8(3);
  for (std::int64_t i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c)
      acc[c] = _mm512_dpbusd_epi32(acc[c], a, a);
  }
  for (int c = 1; c < kChains; ++c)
    acc[0] = _mm512_add_epi32(acc[0], acc[c]);
  int lanes[16];
  _mm512_storeu_si512(lanes, acc[0]);
  return lanes[0];
}

__attribute__((target("avx512f"))) float f32_rounds_512() {
  __m512 acc[kChains];
  for (int c = 0; c < kChains; ++c)
    acc[c] = _mm512_set1_ps(static_cast<float>(c));
  const __m512 a = _mm512_set1_ps(0.5F);
  for (std::int64_t i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c)
      acc[c] = _mm512_fmadd_ps(acc[c], a, a);
  }
  for (int c = 1; c < kChains; ++c)
    acc[0] = _mm512_add_ps(acc[0], acc[c]);
  float lanes[16];
  _mm512_storeu_ps(lanes, acc[0]);
  return lanes[0];
}

__attribute__((target("avx2,fma"))) float f32_rounds_256() {
  __m256 acc[kChains];
  for (int c = 0; c < kChains; ++c)
    acc[c] = _mm256_set1_ps(static_cast<float>(c));
  const __m256 a = _mm256_set1_ps(0.5F);
  for (std::int64_t i = 0; i < kRounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c)
      acc[c] = _mm256_fmadd_ps(acc[c], a, a);
  }
  float sum = 0;
  for (int c = 0; c < kChains; ++c)
    sum += _mm_cvtss_f32(_mm256_castps256_ps128(acc[c]));
  return sum;
}
#endif

}  // namespace

Peaks measure_peaks(int num_threads) {
  ThreadPool pool(num_threads);
  Peaks peaks;
  std::vector<double> sinks(static_cast<std::size_t>(num_threads));
#if defined(__x86_64__)
  const double rounds = static_cast<double>(kRounds) * kChains * num_threads;
  if (__builtin_cpu_supports("avx512vnni")) {
    const double seconds = best_seconds(
        pool, [&](int task) { sinks[static_cast<std::size_t>(task)] += int8_rounds(); });
    peaks.int8_gops = rounds * 128 / seconds * 1e-9;
  }
  if (__builtin_cpu_supports("avx512f")) {
    const double seconds = best_seconds(
        pool, [&](int task) { sinks[static_cast<std::size_t>(task)] += f32_rounds_512(); });
    peaks.f32_gflops = rounds * 32 / seconds * 1e-9;
  } else if (__builtin_cpu_supports("avx2")) {
    const double seconds = best_seconds(
        pool, [&](int task) { sinks[static_cast<std::size_t>(task)] += f32_rounds_256(); });
    peaks.f32_gflops = rounds * 16 / seconds * 1e-9;
  }
#endif
  constexpr std::size_t kBytes = std::size_t{128} << 20;
  const std::vector<std::uint64_t> memory(kBytes / 8, 1);
  const std::size_t share = memory.size() / static_cast<std::size_t>(num_threads);
  const double seconds = best_seconds(pool, [&](int task) {
    const std::uint64_t* from = memory.data() + static_cast<std::size_t>(task) * share;
    std::uint64_t sums[8] = {};
    for (std::size_t i = 0; i + 8 <= share; i += 8) {
      for (std::size_t lane = 0; lane < 8; ++lane)
        sums[lane] += from[i + lane];
    }
    sinks[static_cast<std::size_t>(task)] +=
        static_cast<double>(std::accumulate(sums, sums + 8, std::uint64_t{0}));
  });
  peaks.read_gbs = static_cast<double>(kBytes) / seconds * 1e-9;
  // Keeps the sums alive without printing them.
  if (sinks.front() < -1e300) peaks.read_gbs = 0;
  return peaks;
}

}  // namespace thaw::bench
