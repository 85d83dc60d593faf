// What an attention kernel is compiled for.
#pragma once
#include "cuda/ptx/convert.cuh"
#include "cuda/tile/kv_slice.cuh"

namespace swa::cuda {

template <int kHeadDim_, int kValueDim_, ptx::Half kHalf_, bool kFloat8_>
struct AttentionTraits {
  static constexpr int kHeadDim = kHeadDim_, kValueDim = kValueDim_;
  static constexpr ptx::Half kHalf = kHalf_;  // of queries, probabilities and output
  static constexpr bool kFloat8 = kFloat8_;   // the pools' dtype; else kHalf
  using Slice = KvSlice<kHeadDim, kValueDim, kFloat8 ? 1 : 2>;

  // Keys over which prefill takes one softmax step, at multiples of their number. A slice costs 8
  // registers, beside head_dim / 4 for queries (below 256), v_head_dim / 2 for the output, and some
  // to convert float8.
  static constexpr int kTileSlices = kFloat8 ? (kHeadDim <= 64    ? 4
                                                : kHeadDim <= 128 ? 2
                                                                  : 1)
                                             : (kHeadDim < 256 ? 4 : 2);
  static constexpr int kTileKeys = kTileSlices * kSliceKeys;

  static_assert(kHeadDim % kPanelElements == 0 && kValueDim % kPanelElements == 0,
                "dims are cut into panels");
};

}  // namespace swa::cuda
