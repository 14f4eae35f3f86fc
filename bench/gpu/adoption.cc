#include "bench/gpu/adoption.h"

#include <optional>
#include <vector>

#include <nlohmann/json.hpp>

#include "bench/gpu/timing.h"
#include "engine/cuda/check.h"
#include "engine/cuda/vmm.h"
#include "engine/model/cuda/device_image.h"

namespace thaw::bench {
AdoptionFigures measure_adoption(std::size_t bytes, int repeats) {
  AdoptionFigures figures;
  const cuda::Stream stream;
  std::optional<cuda::VmmAllocation> made;
  figures.create_ms =
      milliseconds([&] { made.emplace(cuda::VmmAllocation::create(0, bytes).value()); });
  figures.bytes = made->size();
  cuda::check(cudaMemset(made->data(), 0x5a, figures.bytes));
  cuda::check(cudaDeviceSynchronize());
  const auto digests = model::device_digests(made->span(), stream).value();
  UniqueFd fd;
  figures.export_ms = milliseconds([&] { fd = made->export_fd().value(); });
  made.reset();  // as when its process has died: the descriptor alone keeps the bytes
  std::vector<double> imports;
  std::vector<double> checks;
  for (int i = 0; i < repeats; ++i) {
    std::optional<cuda::VmmAllocation> adopted;
    imports.push_back(milliseconds(
        [&] { adopted.emplace(cuda::VmmAllocation::import(0, fd.get(), figures.bytes).value()); }));
    checks.push_back(milliseconds(
        [&] { model::verify_device_image(adopted->span(), digests.summary, stream).value(); }));
  }
  figures.import_ms = median(imports);
  figures.verify_ms = median(checks);
  figures.verify_bytes_per_second = static_cast<double>(figures.bytes) / (figures.verify_ms * 1e-3);
  return figures;
}

std::string to_json(const AdoptionFigures& figures) {
  const nlohmann::ordered_json all = {{"bytes", figures.bytes},
                                      {"create_ms", figures.create_ms},
                                      {"export_ms", figures.export_ms},
                                      {"import_ms", figures.import_ms},
                                      {"verify_ms", figures.verify_ms},
                                      {"verify_TB_per_s", figures.verify_bytes_per_second * 1e-12}};
  return all.dump(1);
}

}  // namespace thaw::bench
