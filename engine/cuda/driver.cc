#include "engine/cuda/driver.h"

#include <cuda_runtime_api.h>

#include <string>

#include "engine/base/error.h"

namespace thaw::cuda {
namespace {

constexpr int kDriverVersion = 12000;  // all of them exist since then in the form used here

template <typename F>
void find(F& function, const char* name) {
  void* address = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion(name, &address, kDriverVersion, cudaEnableDefault, &found);
  if (error != cudaSuccess || found != cudaDriverEntryPointSuccess) {
    cudaGetLastError();
    throw Exception(
        make_error(Errc::kUnavailable, std::string("the CUDA driver has no ") + name +
                                           "; a driver of CUDA 12.0 or newer must be installed"));
  }
  function = reinterpret_cast<F>(address);
}

Driver load() {
  Driver d{};
  find(d.mem_create, "cuMemCreate");
  find(d.mem_release, "cuMemRelease");
  find(d.mem_address_reserve, "cuMemAddressReserve");
  find(d.mem_address_free, "cuMemAddressFree");
  find(d.mem_map, "cuMemMap");
  find(d.mem_unmap, "cuMemUnmap");
  find(d.mem_set_access, "cuMemSetAccess");
  find(d.mem_export, "cuMemExportToShareableHandle");
  find(d.mem_import, "cuMemImportFromShareableHandle");
  find(d.mem_granularity, "cuMemGetAllocationGranularity");
  find(d.tensor_map, "cuTensorMapEncodeTiled");
  find(d.get_error_name, "cuGetErrorName");
  return d;
}

}  // namespace

const Driver& driver() {
  static const Driver loaded = load();
  return loaded;
}

void check_driver(CUresult result, const char* what, const char* file, int line) {
  if (result == CUDA_SUCCESS) return;
  const char* name = nullptr;
  driver().get_error_name(result, &name);
  throw Exception(make_error(
      result == CUDA_ERROR_OUT_OF_MEMORY ? Errc::kResourceExhausted : Errc::kCuda,
      std::string(what) + ": " + (name != nullptr ? name : "unknown driver error"), file, line));
}

}  // namespace thaw::cuda
