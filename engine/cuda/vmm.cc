#include "engine/cuda/vmm.h"

#include <string>

#include "engine/base/log.h"
#include "engine/cuda/check.h"
#include "engine/cuda/driver.h"

namespace thaw::cuda {
namespace {

static_assert(sizeof(CUmemGenericAllocationHandle) == sizeof(std::uint64_t));
static_assert(sizeof(CUdeviceptr) == sizeof(std::uint64_t));

CUmemAllocationProp properties(int device) {
  CUmemAllocationProp prop{};
  prop.type = CU_MEM_ALLOCATION_TYPE_PINNED;
  prop.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  prop.location.id = device;
  prop.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
  return prop;
}

// Virtual memory calls need the device's primary context to be current; the runtime makes it
// lazily.
void make_context(int device) {
  check(cudaSetDevice(device), "set device");
  check(cudaFree(nullptr), "create context");
}

std::size_t granularity_of(int device) {
  const CUmemAllocationProp prop = properties(device);
  std::size_t bytes = 0;
  check_driver(driver().mem_granularity(&bytes, &prop, CU_MEM_ALLOC_GRANULARITY_RECOMMENDED),
               "allocation granularity");
  return bytes;
}

void log_failure(CUresult result, const char* what) noexcept {
  if (result == CUDA_SUCCESS || result == CUDA_ERROR_DEINITIALIZED) return;
  try {
    logger("cuda")->error("event=release_failed what={} code={}", what, static_cast<int>(result));
  } catch (...) {  // NOLINT(bugprone-empty-catch): a destructor has nobody to tell
  }
}

}  // namespace

Result<std::size_t> VmmAllocation::granularity(int device) try {
  make_context(device);
  return granularity_of(device);
} catch (const Exception& failure) {
  return failure.error();
}

Result<VmmAllocation> VmmAllocation::create(int device, std::size_t bytes) try {
  if (bytes == 0)
    return make_error(Errc::kInvalidArgument, "an allocation of 0 bytes; ask for at least one");
  make_context(device);
  const std::size_t granularity = granularity_of(device);
  std::size_t free_bytes = 0;
  std::size_t total_bytes = 0;
  check(cudaMemGetInfo(&free_bytes, &total_bytes), "memory of the device");
  const auto no_room = [&] {
    return make_error(Errc::kResourceExhausted,
                      "an allocation of " + std::to_string(bytes) + " bytes on device " +
                          std::to_string(device) + ", of which " + std::to_string(free_bytes) +
                          " of " + std::to_string(total_bytes) + " are free");
  };
  if (bytes > total_bytes) return no_room();
  const std::size_t rounded = (bytes + granularity - 1) / granularity * granularity;
  const CUmemAllocationProp prop = properties(device);
  CUmemGenericAllocationHandle handle = 0;
  const CUresult made = driver().mem_create(&handle, rounded, &prop, 0);
  if (made == CUDA_ERROR_OUT_OF_MEMORY) return no_room();
  check_driver(made, "create allocation");
  VmmAllocation allocation(handle, rounded, device);
  allocation.map();
  return allocation;
} catch (const Exception& failure) {
  return failure.error();
}

Result<VmmAllocation> VmmAllocation::import(int device, int fd, std::size_t bytes) try {
  if (fd < 0 || bytes == 0)
    return make_error(Errc::kInvalidArgument, "import of descriptor " + std::to_string(fd) +
                                                  " with " + std::to_string(bytes) +
                                                  " bytes; both must be those of an export");
  make_context(device);
  CUmemGenericAllocationHandle handle = 0;
  // The descriptor travels by value in the pointer argument.
  check_driver(
      driver().mem_import(&handle,
                          reinterpret_cast<void*>(static_cast<std::intptr_t>(fd)),  // NOLINT
                          CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),
      "import allocation");
  VmmAllocation allocation(handle, bytes, device);
  allocation.map();
  return allocation;
} catch (const Exception& failure) {
  return failure.error();
}

void VmmAllocation::map() {
  CUdeviceptr address = 0;
  check_driver(driver().mem_address_reserve(&address, bytes_, 0, 0, 0), "reserve addresses");
  const CUresult mapped = driver().mem_map(address, bytes_, 0, handle_, 0);
  if (mapped != CUDA_SUCCESS) {
    log_failure(driver().mem_address_free(address, bytes_), "addresses");
    check_driver(mapped, "map allocation");
  }
  address_ = address;  // from here reset() undoes both
  CUmemAccessDesc access{};
  access.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
  access.location.id = device_;
  access.flags = CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
  check_driver(driver().mem_set_access(address_, bytes_, &access, 1), "grant access");
}

VmmAllocation& VmmAllocation::operator=(VmmAllocation&& other) noexcept {
  if (this != &other) {
    reset();
    handle_ = std::exchange(other.handle_, 0);
    address_ = std::exchange(other.address_, 0);
    bytes_ = std::exchange(other.bytes_, 0);
    device_ = other.device_;
  }
  return *this;
}

VmmAllocation::~VmmAllocation() {
  reset();
}

void VmmAllocation::reset() noexcept {
  if (address_ != 0) {
    log_failure(driver().mem_unmap(address_, bytes_), "mapping");
    log_failure(driver().mem_address_free(address_, bytes_), "addresses");
    address_ = 0;
  }
  if (handle_ != 0) log_failure(driver().mem_release(std::exchange(handle_, 0)), "allocation");
}

Result<UniqueFd> VmmAllocation::export_fd() const try {
  int fd = -1;
  check_driver(driver().mem_export(&fd, handle_, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0),
               "export allocation");
  return UniqueFd(fd);
} catch (const Exception& failure) {
  return failure.error();
}

}  // namespace thaw::cuda
