#pragma once

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>

namespace thaw::model {

/// Float memory on cache-line boundaries that only grows; growing loses the content. Move-only.
class FloatBuffer {
 public:
  /// Makes room for `count` floats and returns the start.
  float* reserve(std::size_t count) {
    if (count > capacity_) {
      const std::size_t bytes = (count * sizeof(float) + kAlignment - 1) / kAlignment * kAlignment;
      data_.reset(static_cast<float*>(std::aligned_alloc(kAlignment, bytes)));
      capacity_ = data_ ? bytes / sizeof(float) : 0;
      if (!data_) throw std::bad_alloc();
    }
    return data_.get();
  }
  float* data() const { return data_.get(); }

 private:
  static constexpr std::size_t kAlignment = 64;
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float, Free> data_;
  std::size_t capacity_ = 0;
};

}  // namespace thaw::model
