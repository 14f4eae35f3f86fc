#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace thaw::bench {

/// Rates of KV snapshots and restores on the current GPU against its copy engine, which is measured
/// in the same run. Every time is a median; checksums are part of it.

struct KvCopyOptions {
  std::size_t block_bytes = std::size_t{2} << 20;  ///< of an 8B model in bf16
  std::size_t num_blocks = 250;  ///< 4,000 tokens
  int repeats = 21;
  std::vector<int> checksum_threads = {4, 8, 12};
};

struct KvCopyTimes {
  int checksum_threads = 0;
  bool neighbours = false;  ///< the blocks lie one after another
  double snapshot_ms = 0;
  double restore_ms = 0;
  double snapshot_worst_ms = 0;
  double restore_worst_ms = 0;
};

struct PinnedPages {
  std::string pages;  ///< "reserved 2 MiB", "collapsed", "4 KiB"
  std::size_t bytes = 0;
  double take_ms = 0;  ///< touching the pages, and joining them
  double pin_ms = 0;
  double to_device_bytes_per_second = 0;  ///< by the copy engine, from these pages
  double to_host_bytes_per_second = 0;
};

struct KvCopyFigures {
  std::size_t bytes = 0;  ///< of one snapshot
  double ceiling_to_device = 0;  ///< bytes a second of one plain pinned copy of as many bytes
  double ceiling_to_host = 0;
  double checksum_bytes_per_second = 0;  ///< of one thread, memory that was just written
  std::vector<KvCopyTimes> times;
  std::vector<PinnedPages> pages;  ///< of the kinds that this system gives
  /// The same whole blocks by the copy engine without checksums, as the driver is best given them:
  /// all at once, on one stream and on two.
  double blocks_to_host_ms[2] = {};
  double blocks_to_device_ms[2] = {};
  double compute_alone_ms = 0;  ///< a kernel that reads as much as a decode step
  double compute_beside_snapshots_ms = 0;
  double small_copy_alone_us = 0;  ///< 4 bytes to the host on another stream, as a step's result
  double small_copy_beside_snapshots_us = 0;
};

/// Throws what the device fails with.
KvCopyFigures measure_kv_copies(const KvCopyOptions& options);

/// The figures as JSON, with each rate's share of its ceiling.
std::string to_json(const KvCopyFigures& figures);

}  // namespace thaw::bench
