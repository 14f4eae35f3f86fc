#include "python/src/errors.h"

#include <exception>

#include <pybind11/pybind11.h>

namespace thaw::python {
namespace {

PyObject* type_of(Errc code) {
  switch (code) {
    case Errc::kInvalidArgument:
    case Errc::kUnsupported:
      return PyExc_ValueError;
    case Errc::kNotFound:
      return PyExc_FileNotFoundError;
    case Errc::kUnauthenticated:
      return PyExc_PermissionError;
    case Errc::kDeadlineExceeded:
      return PyExc_TimeoutError;
    case Errc::kIo:
      return PyExc_OSError;
    default:
      return PyExc_RuntimeError;
  }
}

}  // namespace

void register_errors() {
  pybind11::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const Exception& exception) {
      PyErr_SetString(type_of(exception.error().code), exception.error().message.c_str());
    }
  });
}

}  // namespace thaw::python
