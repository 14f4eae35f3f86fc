#pragma once

namespace thaw::bench {

/// Ceilings of this processor, measured in the same run as what is compared with them. Each runs
/// for a few milliseconds on `num_threads` threads and returns the best of several tries.
struct Peaks {
  double int8_gops = 0;  ///< vpdpbusd on registers; 0 where the processor has none
  double f32_gflops = 0;  ///< fused multiply-adds on registers
  double read_gbs = 0;  ///< sum over a buffer larger than the caches
};
Peaks measure_peaks(int num_threads);

}  // namespace thaw::bench
