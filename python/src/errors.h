#pragma once

#include <type_traits>
#include <utility>

#include "engine/base/result.h"

namespace thaw::python {

/// Has Exception arrive in Python as what its code means there: ValueError for values that are
/// wrong, OSError and its kin for what the system or a file refused, else RuntimeError. Call it
/// once for a module.
void register_errors();

/// The value, or its error thrown as Exception.
template <typename T>
T take(Result<T> result) {
  if (!result) throw Exception(std::move(result).error());
  if constexpr (!std::is_void_v<T>) return *std::move(result);
}

}  // namespace thaw::python
