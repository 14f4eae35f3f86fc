#pragma once

#include <pybind11/pybind11.h>

namespace thaw::python {

/// Adds Engine, and ends all engines that live when the interpreter ends.
void register_engine(pybind11::module_& module);

}  // namespace thaw::python
