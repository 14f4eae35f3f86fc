#pragma once

#include <cstddef>
#include <string>

namespace thaw::bench {

/// What a worker's successor pays for weights that lie on the device already: milliseconds,
/// medians.
struct AdoptionFigures {
  std::size_t bytes = 0;
  double export_ms = 0;  ///< by the worker that made them, once
  double import_ms = 0;  ///< mapping them in the successor
  double verify_ms = 0;  ///< comparing all bytes with their digest
  double verify_bytes_per_second = 0;
  double create_ms = 0;  ///< beside it: memory of that size made anew
};

/// Throws what the device fails with; it must have `bytes` free.
AdoptionFigures measure_adoption(std::size_t bytes, int repeats);

std::string to_json(const AdoptionFigures& figures);

}  // namespace thaw::bench
