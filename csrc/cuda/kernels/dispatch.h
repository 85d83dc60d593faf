// From what is known when a kernel is launched to what it is compiled for.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "cuda/params.h"

namespace swa::cuda {

template <DType kDType>
using DTypeConstant = std::integral_constant<DType, kDType>;

// Calls f with the dtype of queries, new keys and outputs as a constant.
template <class F>
auto with_float(DType dtype, F f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(DTypeConstant<DType::kFloat32>());
    case DType::kBFloat16:
      return f(DTypeConstant<DType::kBFloat16>());
    default:
      return f(DTypeConstant<DType::kFloat16>());
  }
}

// The same for the dtype of a pool.
template <class F>
auto with_dtype(DType dtype, F f) {
  return dtype == DType::kFloat8 ? f(DTypeConstant<DType::kFloat8>()) : with_float(dtype, f);
}

// Whether an address and the distances from it are all multiples of `bytes`.
inline bool all_aligned(int bytes, const void* address, std::initializer_list<int64_t> distances) {
  uint64_t bits = reinterpret_cast<uintptr_t>(address);
  for (int64_t distance : distances) bits |= uint64_t(distance);
  return bits % uint64_t(bytes) == 0;
}

}  // namespace swa::cuda
