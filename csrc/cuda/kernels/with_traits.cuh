// From the dtypes of a launch to what attention kernels are compiled for.
#pragma once
#include "cuda/params.h"
#include "cuda/tile/traits.cuh"

namespace swa::cuda {

// Calls f with the traits of the parameters' dtypes.
template <int kHeadDim, int kValueDim, class F>
int with_traits(const AttentionParams& p, F f) {
  using ptx::Half;
  const bool float8 = p.kv_dtype == DType::kFloat8;
  if (p.dtype == DType::kBFloat16)
    return float8 ? f(AttentionTraits<kHeadDim, kValueDim, Half::kBf16, true>())
                  : f(AttentionTraits<kHeadDim, kValueDim, Half::kBf16, false>());
  return float8 ? f(AttentionTraits<kHeadDim, kValueDim, Half::kFp16, true>())
                : f(AttentionTraits<kHeadDim, kValueDim, Half::kFp16, false>());
}

}  // namespace swa::cuda
