#include <cstddef>
#include <cstdint>
#include <span>

#include <pybind11/pybind11.h>

#include "cli/version.h"
#include "engine/base/crc32c.h"
#include "python/src/engine.h"
#include "python/src/errors.h"

namespace {

namespace py = pybind11;

/// The bytes of a contiguous buffer, which stay where they are while this lives. Needs the GIL.
class HeldBuffer {
 public:
  explicit HeldBuffer(const py::buffer& object) {
    if (PyObject_GetBuffer(object.ptr(), &view_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
  }
  ~HeldBuffer() { PyBuffer_Release(&view_); }
  HeldBuffer(const HeldBuffer&) = delete;
  HeldBuffer& operator=(const HeldBuffer&) = delete;

  std::span<const std::byte> bytes() const {
    return {static_cast<const std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  Py_buffer view_{};
};

std::uint32_t crc32c_of(const py::buffer& buffer, std::uint32_t previous) {
  const HeldBuffer held(buffer);
  const py::gil_scoped_release free;
  return thaw::crc32c(held.bytes(), previous);
}

}  // namespace

// The GIL is needed: what Python calls here is not made for two threads at once without it.
PYBIND11_MODULE(_core, module) {
  module.doc() = "thaw's coalescer, pool and server inside of this process.";
  module.attr("version") = thaw::kVersion;
  module.def("crc32c", &crc32c_of, py::arg("buffer"), py::arg("previous"));
  thaw::python::register_errors();
  thaw::python::register_engine(module);
}
