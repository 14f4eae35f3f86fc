#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace thaw::bench {

/// One exchange inside a graph of many, microseconds, the median of the slowest rank's.
struct ExchangeFigure {
  std::string what;
  int rows = 0;
  std::size_t part_bytes = 0;  ///< that each rank stores to the other
  double us = 0;
};

/// A step of the model; `ranks` 1 is the same bench on one of the devices.
struct StepFigure {
  int ranks = 0;
  std::string what;
  int rows = 0;
  int trunk = 0;  ///< tokens before
  double ms = 0;
  double exchange_ms = 0;  ///< of it, operations one after the other: more than they cost
};

struct TensorParallelFigures {
  std::vector<ExchangeFigure> exchanges;
  std::vector<StepFigure> steps;
};

/// Two ranks in this process on devices 0 and 1 (both on 0 cannot be measured), random weights of
/// an 8B Llama's shape. Throws what the devices fail with.
TensorParallelFigures measure_tensor_parallel();

std::string to_json(const TensorParallelFigures& figures);

}  // namespace thaw::bench
