#include <pybind11/pybind11.h>

#include "cli/version.h"
#include "python/src/engine.h"
#include "python/src/errors.h"

// The GIL is needed: what Python calls here is not made for two threads at once without it.
PYBIND11_MODULE(_core, module) {
  module.doc() = "thaw's coalescer, pool and server inside of this process.";
  module.attr("version") = thaw::kVersion;
  thaw::python::register_errors();
  thaw::python::register_engine(module);
}
