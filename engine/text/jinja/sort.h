#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace thaw::text::jinja {

/// Stable merge sort. `less` may throw, and may be inconsistent (NaN): the result is then some
/// order, never an access outside, which std::sort does not promise.
template <typename T, typename Less>
void merge_sort(std::vector<T>& items, Less&& less) {
  std::vector<T> merged;
  merged.reserve(items.size());
  for (std::size_t width = 1; width < items.size(); width *= 2) {
    merged.clear();
    for (std::size_t begin = 0; begin < items.size(); begin += 2 * width) {
      const std::size_t middle = std::min(begin + width, items.size());
      const std::size_t end = std::min(middle + width, items.size());
      std::size_t left = begin;
      std::size_t right = middle;
      while (left < middle || right < end) {
        const bool take_right = left == middle || (right < end && less(items[right], items[left]));
        merged.push_back(std::move(items[take_right ? right++ : left++]));
      }
    }
    items.swap(merged);
  }
}

}  // namespace thaw::text::jinja
