#include "bench/gpu/weights.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <span>
#include <stdexcept>
#include <thread>

#include <nlohmann/json.hpp>

#include "bench/gpu/timing.h"
#include "engine/base/memory_map.h"
#include "engine/cuda/check.h"
#include "engine/cuda/device_info.h"
#include "engine/cuda/vmm.h"
#include "engine/model/cuda/device_image.h"
#include "kvsnap/arena_memory.h"
#include "kvsnap/page_warmer.h"
#include "kvsnap/pinned_range.h"

namespace thaw::bench {
namespace {

constexpr std::size_t kPage = 4096;

/// Calls `work` for parts of [0, bytes), whole pages, on all cores.
void on_all_cores(std::size_t bytes, const std::function<void(std::size_t, std::size_t)>& work) {
  const std::size_t cores = std::max(1U, std::thread::hardware_concurrency());
  const std::size_t part = (bytes / cores + kPage) / kPage * kPage;
  std::vector<std::jthread> threads;
  for (std::size_t first = 0; first < bytes; first += part)
    threads.emplace_back([=, &work] { work(first, std::min(bytes, first + part)); });
}

/// Takes every page, with bytes that no hardware finds a shortcut for.
void fill(std::span<std::byte> memory) {
  on_all_cores(memory.size(), [&](std::size_t first, std::size_t end) {
    for (std::size_t at = first; at + sizeof(std::uint64_t) <= end; at += sizeof(std::uint64_t)) {
      const std::uint64_t value = (at + 1) * 0x9e3779b97f4a7c15ULL;
      std::memcpy(memory.data() + at, &value, sizeof value);
    }
  });
}

/// A file of its own that is gone when this is.
class OwnFile {
 public:
  OwnFile(const std::string& directory, std::size_t bytes)
      : path_(directory + "/thaw-bench-weights-" + std::to_string(::getpid())) {
    UniqueFd fd(::open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    if (!fd || ::ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0)
      throw std::runtime_error(path_ + ": " + std::strerror(errno));
    fd_ = std::move(fd);
    const Mapping mapping = map_fd(fd_.get(), bytes, MapAccess::kReadWrite).value();
    fill(mapping.bytes());
  }
  ~OwnFile() { ::unlink(path_.c_str()); }
  OwnFile(const OwnFile&) = delete;
  OwnFile& operator=(const OwnFile&) = delete;
  int fd() const { return fd_.get(); }

 private:
  std::string path_;
  UniqueFd fd_;
};

class Weights {
 public:
  explicit Weights(const WeightOptions& options)
      : options_(options), device_(cuda::VmmAllocation::create(0, options.bytes).value()) {
    figures_.bytes = options.bytes;
    figures_.ceiling_to_device =
        cuda::measure_copy_rates(std::size_t{1} << 30, 5, stream_).value().to_device;
  }

  WeightFigures measure() {
    upload();
    void* reserved = ::mmap(nullptr, huge_bytes(), PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    if (reserved != MAP_FAILED) {
      const Mapping mapping(static_cast<std::byte*>(reserved), huge_bytes());
      swap_from("reserved 2 MiB", mapping.bytes(), [&] { fill(mapping.bytes()); });
    }
    swap_from_shared("collapsed", true);
    swap_from_shared("4 KiB", false);
    return figures_;
  }

 private:
  std::size_t huge_bytes() const {
    return (options_.bytes + (2 << 20) - 1) / (2 << 20) * (2 << 20);
  }
  cuda::DeviceSpan<std::byte> target() const { return device_.span().subspan(0, options_.bytes); }

  void upload() {
    const OwnFile file(options_.directory, options_.bytes);
    std::vector<double> times;
    std::vector<double> pinning;
    for (int i = 0; i < options_.repeats + 1; ++i) {
      const auto report = model::upload_image(file.fd(), target()).value();
      if (i == 0) continue;  // warms up
      times.push_back(std::chrono::duration<double, std::milli>(report.elapsed).count());
      pinning.push_back(std::chrono::duration<double, std::milli>(report.pinning).count());
    }
    figures_.upload_ms = median(times);
    figures_.upload_pinning_ms = median(pinning);
  }

  void swap_from_shared(const std::string& name, bool collapse) {
    const UniqueFd fd = create_memfd("bench-weights", options_.bytes).value();
    const Mapping mapping = kvsnap::map_on_huge_boundary(fd.get(), options_.bytes).value();
    (void)::madvise(mapping.data(), options_.bytes, collapse ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    swap_from(name, mapping.bytes(), [&] {
      if (collapse) kvsnap::PageWarmer::start(fd.get()).value().wait();
      fill(mapping.bytes());
    });
  }

  void swap_from(const std::string& name, std::span<std::byte> memory,
                 const std::function<void()>& take) {
    PinnedWeights figures{name};
    figures.take_ms = milliseconds(take);
    const auto start = std::chrono::steady_clock::now();
    const kvsnap::PinnedRange pinned = kvsnap::PinnedRange::pin(memory).value();
    figures.pin_ms = milliseconds_since(start);
    std::vector<double> times;
    for (int i = 0; i < options_.repeats; ++i) {
      times.push_back(milliseconds([&] {
        cuda::copy_to_device<std::byte>(memory.first(options_.bytes), target(), stream_);
        stream_.synchronize();
      }));
    }
    figures.swap_ms = median(times);
    figures_.pinned.push_back(figures);
  }

  WeightOptions options_;
  cuda::Stream stream_;
  cuda::VmmAllocation device_;
  WeightFigures figures_;
};

}  // namespace

WeightFigures measure_weights(const WeightOptions& options) {
  return Weights(options).measure();
}

std::string to_json(const WeightFigures& figures) {
  using Json = nlohmann::ordered_json;
  const auto share = [&](double ms) {
    return static_cast<double>(figures.bytes) / (ms * 1e-3) / figures.ceiling_to_device;
  };
  Json pinned = Json::array();
  for (const PinnedWeights& p : figures.pinned) {
    pinned.push_back({{"pages", p.pages},
                      {"take_ms", p.take_ms},
                      {"pin_ms", p.pin_ms},
                      {"swap_ms", p.swap_ms},
                      {"swap_share", share(p.swap_ms)}});
  }
  const Json all = {{"bytes", figures.bytes},
                    {"copy_engine_to_device_GB_per_s", figures.ceiling_to_device * 1e-9},
                    {"upload_ms", figures.upload_ms},
                    {"upload_pinning_ms", figures.upload_pinning_ms},
                    {"upload_share", share(figures.upload_ms)},
                    {"pinned", pinned}};
  return all.dump(1);
}

}  // namespace thaw::bench
