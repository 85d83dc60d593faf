// Small readings of stable-ABI tensors that the glue needs.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

namespace swa::ops {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline int64_t byte_stride(const Tensor& x, int64_t dim) {
  return x.stride(dim) * int64_t(x.element_size());
}

inline char* bytes(const Tensor& x) { return static_cast<char*>(x.data_ptr()); }

// Into the kernels' own enumeration, of the CPU's or CUDA's.
template <class DType>
DType dtype_of(const Tensor& x) {
  using torch::headeronly::ScalarType;
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    case ScalarType::Half:
      return DType::kFloat16;
    default:
      return DType::kFloat8;
  }
}

template <class T>
const T* data(const Tensor& x) {
  return static_cast<const T*>(x.const_data_ptr());
}

template <class T>
const T* data_or_null(const OptionalTensor& x) {
  return x ? data<T>(*x) : nullptr;
}

}  // namespace swa::ops
