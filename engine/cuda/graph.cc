#include "engine/cuda/graph.h"

#include "engine/cuda/check.h"

namespace thaw::cuda {

Graph Graph::capture(StreamView stream, const std::function<void(StreamView)>& enqueue) {
  cudaGraph_t graph = nullptr;
  // Thread-local: other threads may allocate and copy while this one captures.
  check(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal), "begin capture");
  try {
    enqueue(stream);
  } catch (...) {
    cudaStreamEndCapture(stream.get(), &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    cudaGetLastError();
    throw;
  }
  check(cudaStreamEndCapture(stream.get(), &graph), "end capture");
  cudaGraphExec_t exec = nullptr;
  const cudaError_t made = cudaGraphInstantiate(&exec, graph, 0);
  check_noexcept(cudaGraphDestroy(graph), "graph");
  check(made, "instantiate graph");
  return Graph(exec);
}

Graph& Graph::operator=(Graph&& other) noexcept {
  std::swap(exec_, other.exec_);
  return *this;
}

Graph::~Graph() {
  if (exec_ != nullptr) check_noexcept(cudaGraphExecDestroy(exec_), "graph");
}

void Graph::launch(StreamView stream) const {
  check(cudaGraphLaunch(exec_, stream.get()), "launch graph");
}

}  // namespace thaw::cuda
