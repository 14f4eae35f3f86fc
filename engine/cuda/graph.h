#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <utility>

#include "engine/cuda/stream.h"

namespace thaw::cuda {

/// A captured sequence of device work, ready to be launched again and again. Move-only. Pointers
/// and sizes are those of the capture; what changes from launch to launch lives in device memory.
class Graph {
 public:
  /// Captures what `enqueue` puts on `stream` (nothing runs yet) and instantiates it. Throws what
  /// `enqueue` throws, after the capture has been ended; `kCuda` where something in it cannot be
  /// captured.
  static Graph capture(StreamView stream, const std::function<void(StreamView)>& enqueue);

  Graph(Graph&& other) noexcept : exec_(std::exchange(other.exec_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept;
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  ~Graph();

  /// Enqueues the whole graph. Two launches of one graph never overlap: CUDA orders them.
  void launch(StreamView stream) const;

 private:
  explicit Graph(cudaGraphExec_t exec) noexcept : exec_(exec) {}
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace thaw::cuda
