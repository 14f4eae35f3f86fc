#pragma once

#include <cuda.h>

namespace thaw::cuda {

/// The driver calls that the runtime has no names for, found through the runtime. The binary links
/// against no driver, so it starts on machines that have none.
struct Driver {
  decltype(&cuMemCreate) mem_create;
  decltype(&cuMemRelease) mem_release;
  decltype(&cuMemAddressReserve) mem_address_reserve;
  decltype(&cuMemAddressFree) mem_address_free;
  decltype(&cuMemMap) mem_map;
  decltype(&cuMemUnmap) mem_unmap;
  decltype(&cuMemSetAccess) mem_set_access;
  decltype(&cuMemExportToShareableHandle) mem_export;
  decltype(&cuMemImportFromShareableHandle) mem_import;
  decltype(&cuMemGetAllocationGranularity) mem_granularity;
  decltype(&cuTensorMapEncodeTiled) tensor_map;
  decltype(&cuGetErrorName) get_error_name;
};

/// Resolved once, thread-safe. Throws `kUnavailable` where there is no driver or it is too old.
const Driver& driver();

/// Like check(), for driver calls.
void check_driver(CUresult result, const char* what, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE());

}  // namespace thaw::cuda
